// Package kvfeed speaks ZMTP, the wire protocol of ZeroMQ, as far as KV events
// need it: version 3 with the NULL mechanism, SUB and DEALER against engines,
// PUB and ROUTER to stand in for one.
package kvfeed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Limits on what a peer may send: a batch of KV events is kilobytes.
const (
	maxMessage = 64 << 20 // bytes of all frames of a message
	maxFrames  = 16       // frames of a message
	maxCommand = 8 << 10  // bytes
	firstRead  = 64 << 10 // bytes of a frame taken on trust; more as they come
)

// The flags of a frame.
const (
	flagMore    = 1
	flagLong    = 2
	flagCommand = 4
)

// ErrProtocol says that the peer does not speak ZMTP, or more than is let in.
var ErrProtocol = errors.New("not ZMTP as it must be")

// frame is one frame off the wire.
type frame struct {
	flags byte
	body  []byte
}

// readFrame reads one frame of at most limit bytes, with its body appended to
// buf. A length is believed only as far as bytes arrive.
func readFrame(r io.Reader, buf []byte, limit int) (frame, []byte, error) {
	var head [9]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return frame{}, buf, err
	}
	flags, size := head[0], uint64(head[1])
	if flags&^(flagMore|flagLong|flagCommand) != 0 || flags&(flagMore|flagCommand) == flagMore|flagCommand {
		return frame{}, buf, fmt.Errorf("flags %#x: %w", flags, ErrProtocol)
	}
	if flags&flagLong != 0 {
		if _, err := io.ReadFull(r, head[2:]); err != nil {
			return frame{}, buf, noEOF(err)
		}
		size = binary.BigEndian.Uint64(head[1:])
	}
	if flags&flagCommand != 0 {
		limit = min(limit, maxCommand)
	}
	if size > uint64(limit) {
		return frame{}, buf, fmt.Errorf("a frame of %d bytes: %w", size, ErrProtocol)
	}
	from := len(buf)
	for left := int(size); left > 0; {
		n, at := min(left, max(firstRead, len(buf)-from)), len(buf)
		buf = append(buf, make([]byte, n)...)
		if _, err := io.ReadFull(r, buf[at:]); err != nil {
			return frame{}, buf[:from], noEOF(err)
		}
		left -= n
	}
	return frame{flags, buf[from:len(buf):len(buf)]}, buf, nil
}

// noEOF tells an end in the middle of a frame from one between frames.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendFrame appends one frame to dst.
func appendFrame(dst []byte, flags byte, body []byte) []byte {
	if len(body) > 255 {
		dst = binary.BigEndian.AppendUint64(append(dst, flags|flagLong), uint64(len(body)))
	} else {
		dst = append(dst, flags, byte(len(body)))
	}
	return append(dst, body...)
}

// appendMessage appends a message of several frames to dst.
func appendMessage(dst []byte, frames ...[]byte) []byte {
	for i, f := range frames {
		flags := byte(flagMore)
		if i == len(frames)-1 {
			flags = 0
		}
		dst = appendFrame(dst, flags, f)
	}
	return dst
}

// appendCommand appends a command to dst.
func appendCommand(dst []byte, name string, data []byte) []byte {
	body := append([]byte{byte(len(name))}, name...)
	return appendFrame(dst, flagCommand, append(body, data...))
}

// command takes the body of a command apart.
func command(body []byte) (name string, data []byte, err error) {
	if len(body) < 1 || len(body) < 1+int(body[0]) {
		return "", nil, fmt.Errorf("a command cut short: %w", ErrProtocol)
	}
	n := 1 + int(body[0])
	return string(body[1:n]), body[n:], nil
}
