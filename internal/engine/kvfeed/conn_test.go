package kvfeed

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"testing"
)

// pair connects sockets of two types over a pipe.
func pair(t *testing.T, a, b string) (x, y *Conn, err error) {
	t.Helper()
	left, right := net.Pipe()
	done := make(chan error, 1)
	go func() {
		var err error
		y, err = NewConn(right, b)
		done <- err
	}()
	x, err = NewConn(left, a)
	err = errors.Join(err, <-done)
	t.Cleanup(func() { left.Close(); right.Close() })
	return x, y, err
}

func TestConnCarriesMessages(t *testing.T) {
	sub, pub, err := pair(t, "SUB", "PUB")
	if err != nil {
		t.Fatal(err)
	}
	long := bytes.Repeat([]byte("x"), 300_000)
	go func() {
		_ = sub.Subscribe("kv@")
		_ = sub.write(appendCommand(nil, "SUBSCRIBE", []byte("new")))
		_ = sub.write(appendCommand(nil, "CANCEL", []byte("new")))
	}()
	for _, want := range []string{"\x01kv@", "\x01new", "\x00new"} {
		if got, err := pub.Receive(); err != nil || len(got) != 1 || string(got[0]) != want {
			t.Fatalf("%q, %v; want %q", got, err, want)
		}
	}
	go func() { _ = pub.Send([]byte("topic"), nil, long) }()
	got, err := sub.Receive()
	if err != nil || len(got) != 3 || string(got[0]) != "topic" || len(got[1]) != 0 || !bytes.Equal(got[2], long) {
		t.Fatalf("%d frames, %v", len(got), err)
	}
}

func TestPingIsAnswered(t *testing.T) {
	sub, pub, err := pair(t, "SUB", "PUB")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = sub.Receive() }()
	if err := pub.write(appendCommand(nil, "PING", []byte("\x00\x0acontext"))); err != nil {
		t.Fatal(err)
	}
	f, _, err := readFrame(pub.r, nil, maxCommand)
	if name, data, _ := command(f.body); err != nil || name != "PONG" || string(data) != "context" {
		t.Fatalf("%q %q, %v", name, data, err)
	}
}

func TestPeersThatDoNotFit(t *testing.T) {
	if _, _, err := pair(t, "SUB", "ROUTER"); !errors.Is(err, ErrProtocol) {
		t.Errorf("a SUB and a ROUTER: %v", err)
	}
}

// TestHandshakeOfRecordedPeer meets libzmq's kind of peer by its bytes.
func TestHandshakeOfRecordedPeer(t *testing.T) {
	raw, err := hex.DecodeString("ff00000000000000007f03004e554c4c" + "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000" +
		"0434" + "0552454144590b536f636b65742d5479706500000003505542084964656e7469747900000012" + "436437303664662d356331392d343133332d")
	if err != nil {
		t.Fatal(err)
	}
	raw[65] = byte(len(raw) - 66)
	left, right := net.Pipe()
	defer right.Close()
	go func() { _, _ = right.Write(raw) }()
	go func() { _, _ = io.Copy(io.Discard, right) }()
	c, err := NewConn(left, "SUB")
	if err != nil || c.peer != "PUB" {
		t.Fatalf("%v", err)
	}
}

// memory is a connection whose peer has said all it ever will.
type memory struct {
	net.Conn
	io.Reader
}

func (m memory) Read(b []byte) (int, error)  { return m.Reader.Read(b) }
func (m memory) Write(b []byte) (int, error) { return len(b), nil }

func FuzzReceive(f *testing.F) {
	f.Add(appendMessage(nil, []byte("topic"), []byte("12345678"), bytes.Repeat([]byte("p"), 300)))
	f.Add(appendCommand(appendCommand(nil, "SUBSCRIBE", []byte("kv@")), "PING", []byte{0, 1, 2}))
	f.Add([]byte{flagLong, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{flagLong, 0, 0, 0, 0, 0x03, 0xff, 0xff, 0xff, 1, 2, 3})
	f.Fuzz(func(t *testing.T, wire []byte) {
		c := newConn(memory{Reader: bytes.NewReader(wire)})
		for {
			frames, err := c.Receive()
			if err != nil {
				return
			}
			total := 0
			for _, x := range frames {
				total += len(x)
			}
			if len(frames) == 0 || len(frames) > maxFrames || total > len(wire) || cap(c.buf) > 4*(len(wire)+firstRead) {
				t.Fatalf("%d frames of %d bytes, %d kept, out of %d", len(frames), total, cap(c.buf), len(wire))
			}
		}
	})
}
