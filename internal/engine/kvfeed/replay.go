package kvfeed

import (
	"encoding/binary"
	"fmt"

	"penstock.dev/penstock/internal/kv"
)

// Part takes a message of a publisher or of a replay apart: the payload is
// last and the sequence number before it, whatever comes first. Replays begin
// with an empty frame, and name the topic or, from older engines, do not.
func Part(frames [][]byte) (seq uint64, payload []byte, err error) {
	n := len(frames)
	if n < 2 || len(frames[n-2]) != 8 {
		return 0, nil, fmt.Errorf("%d frames with no sequence number: %w", n, ErrProtocol)
	}
	return binary.BigEndian.Uint64(frames[n-2]), frames[n-1], nil
}

// AskReplay asks a ROUTER for the batches from seq on.
func (c *Conn) AskReplay(seq uint64) error {
	return c.Send(nil, binary.BigEndian.AppendUint64(nil, seq))
}

// ReadReplay hands over the batches of a replay until its end mark. A payload
// is good until take returns.
func (c *Conn) ReadReplay(take func(seq uint64, payload []byte)) error {
	for {
		frames, err := c.Receive()
		if err != nil {
			return fmt.Errorf("read replay: %w", err)
		}
		seq, payload, err := Part(frames)
		if err != nil {
			return err
		}
		if seq == kv.EndOfReplay {
			return nil
		}
		take(seq, payload)
	}
}
