package kvfeed

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// handshakeTime is how long a peer may take to introduce itself.
const handshakeTime = 5 * time.Second

// Conn is one ZMTP connection after its handshake. One goroutine may receive,
// and any may send.
type Conn struct {
	nc    net.Conn
	r     *bufio.Reader
	peer  string // socket type
	minor byte   // of the peer's version 3

	idle  time.Duration // that a frame may take to come; 0 any
	until time.Time     // when receiving ends; zero never
	pong  func()        // called by Receive at each answer to a Ping; nil none

	mu  sync.Mutex // of writing
	out []byte

	buf    []byte
	frames [][]byte
}

// NewConn introduces this side as a socket of the given type over nc, and
// closes nc when the peer is none that such a socket talks to.
func NewConn(nc net.Conn, socket string) (*Conn, error) {
	c := newConn(nc)
	if err := c.handshake(socket); err != nil {
		nc.Close()
		return nil, fmt.Errorf("ZMTP handshake as %s: %w", socket, err)
	}
	return c, nil
}

func newConn(nc net.Conn) *Conn { return &Conn{nc: nc, r: bufio.NewReaderSize(nc, 64<<10)} }

// fits reports whether sockets of two types talk to each other.
func fits(a, b string) bool {
	switch a {
	case "SUB":
		return b == "PUB" || b == "XPUB"
	case "PUB":
		return b == "SUB" || b == "XSUB"
	case "DEALER":
		return b == "ROUTER"
	case "ROUTER":
		return b == "DEALER" || b == "REQ"
	}
	return false
}

func (c *Conn) handshake(socket string) error {
	if err := c.nc.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	greeting := make([]byte, 64)
	greeting[0], greeting[9], greeting[10], greeting[11] = 0xff, 0x7f, 3, 1
	copy(greeting[12:], "NULL")
	var data []byte
	for _, p := range [][2]string{{"Socket-Type", socket}, {"Identity", ""}} {
		data = append(append(data, byte(len(p[0]))), p[0]...)
		data = append(binary.BigEndian.AppendUint32(data, uint32(len(p[1]))), p[1]...)
	}
	// Both sides speak first, so writing must not wait for reading.
	wrote := make(chan error, 1)
	go func() {
		_, err := c.nc.Write(appendCommand(greeting, "READY", data))
		wrote <- err
	}()
	err := c.meet(socket)
	if err != nil {
		c.nc.Close()
	}
	if werr := <-wrote; err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	return c.nc.SetDeadline(time.Time{})
}

// meet reads the peer's greeting and READY.
func (c *Conn) meet(socket string) error {
	var greeting [64]byte
	if _, err := io.ReadFull(c.r, greeting[:]); err != nil {
		return err
	}
	if greeting[0] != 0xff || greeting[9]&1 == 0 || greeting[10] < 3 {
		return fmt.Errorf("greeting %x: %w", greeting[:11], ErrProtocol)
	}
	c.minor = greeting[11]
	if greeting[10] > 3 {
		c.minor = 1
	}
	if mechanism := bytes.TrimRight(greeting[12:32], "\x00"); string(mechanism) != "NULL" {
		return fmt.Errorf("mechanism %q: %w", mechanism, ErrProtocol)
	}
	f, _, err := readFrame(c.r, nil, maxCommand)
	if err != nil {
		return err
	}
	name, data, err := command(f.body)
	if err != nil || f.flags&flagCommand == 0 || name != "READY" {
		return fmt.Errorf("%q where READY was due: %w", name, ErrProtocol)
	}
	if c.peer, err = socketType(data); err != nil {
		return err
	}
	if !fits(socket, c.peer) {
		return fmt.Errorf("the peer is %q: %w", c.peer, ErrProtocol)
	}
	return nil
}

// socketType finds the peer's type among the properties of READY.
func socketType(data []byte) (string, error) {
	kind := ""
	for len(data) > 0 {
		n := 1 + int(data[0])
		if len(data) < n+4 {
			return "", fmt.Errorf("properties cut short: %w", ErrProtocol)
		}
		key, size := data[1:n], uint64(binary.BigEndian.Uint32(data[n:]))
		data = data[n+4:]
		if size > uint64(len(data)) {
			return "", fmt.Errorf("properties cut short: %w", ErrProtocol)
		}
		if bytes.EqualFold(key, []byte("Socket-Type")) {
			kind = string(data[:size])
		}
		data = data[size:]
	}
	return kind, nil
}

// Receive returns the next message, good until the next call. PINGs are
// answered on the way; a subscription in either form is a message of one frame,
// 1 or 0 and the prefix.
func (c *Conn) Receive() ([][]byte, error) {
	c.buf, c.frames = c.buf[:0], c.frames[:0]
	for {
		if err := c.patience(); err != nil {
			return nil, err
		}
		f, buf, err := readFrame(c.r, c.buf, maxMessage-len(c.buf))
		if err != nil {
			return nil, err
		}
		if f.flags&flagCommand != 0 {
			message, err := c.answer(f.body)
			if err != nil {
				return nil, err
			}
			if message != nil && len(c.frames) == 0 {
				return append(c.frames, message), nil
			}
			continue
		}
		c.buf = buf
		if len(c.frames) == maxFrames {
			return nil, fmt.Errorf("more than %d frames: %w", maxFrames, ErrProtocol)
		}
		c.frames = append(c.frames, f.body)
		if f.flags&flagMore == 0 {
			return c.frames, nil
		}
	}
}

// Limit gives every frame idle to come, and all of them total; 0 is no limit. A
// Receive that has to wait longer fails.
func (c *Conn) Limit(idle, total time.Duration) {
	c.idle, c.until = idle, time.Time{}
	if total > 0 {
		c.until = time.Now().Add(total)
	}
}

// patience sets the time by which the next frame must be here.
func (c *Conn) patience() error {
	by := c.until
	if c.idle > 0 {
		if soon := time.Now().Add(c.idle); by.IsZero() || soon.Before(by) {
			by = soon
		}
	}
	if by.IsZero() {
		return nil
	}
	return c.nc.SetReadDeadline(by)
}

// Pings reports whether the peer speaks a version of ZMTP that has PING.
func (c *Conn) Pings() bool { return c.minor >= 1 }

// Ping asks the peer for a sign of life, which Receive passes over.
func (c *Conn) Ping() error { return c.write(appendCommand(nil, "PING", []byte{0, 0})) }

// answer does what a command asks. Commands nobody knows are passed over.
func (c *Conn) answer(body []byte) (message []byte, err error) {
	name, data, err := command(body)
	if err != nil {
		return nil, err
	}
	switch name {
	case "SUBSCRIBE":
		return append([]byte{1}, data...), nil
	case "CANCEL":
		return append([]byte{0}, data...), nil
	case "PING":
		if len(data) < 2 {
			return nil, fmt.Errorf("PING cut short: %w", ErrProtocol)
		}
		return nil, c.write(appendCommand(nil, "PONG", data[2:])) // without its time to live
	case "PONG":
		if c.pong != nil {
			c.pong()
		}
	case "ERROR":
		return nil, fmt.Errorf("the peer ended it, %.100q: %w", data, ErrProtocol)
	}
	return nil, nil
}

// Send sends one message.
func (c *Conn) Send(frames ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = appendMessage(c.out[:0], frames...)
	_, err := c.nc.Write(c.out)
	return err
}

// Subscribe asks a publisher for the topics that begin with prefix, in the form
// that every version takes.
func (c *Conn) Subscribe(prefix string) error {
	return c.Send(append([]byte{1}, prefix...))
}

func (c *Conn) write(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.nc.Write(b)
	return err
}

// Close ends the connection; a Receive that waits returns.
func (c *Conn) Close() error { return c.nc.Close() }
