package kvfeed

import (
	"net"
	"testing"
	"testing/synctest"
)

func TestSlowSubscriberMissesAndOthersDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPublisher(4)
		join := func(prefix string) *Conn {
			near, far := net.Pipe()
			go func() { _ = p.Serve(far) }()
			c, err := NewConn(near, "SUB")
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Subscribe(prefix); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return c
		}
		slow, quick, other := join("kv"), join(""), join("no")
		got := 0
		go func() {
			for {
				if _, err := quick.Receive(); err != nil {
					return
				}
				got++
			}
		}()
		missed := 0
		for range 20 {
			missed += p.Publish([]byte("kv@a"), []byte("12345678"), []byte("payload"))
			synctest.Wait()
		}
		// One message is on its way to the slow one, four are queued.
		if missed != 15 || got != 20 {
			t.Errorf("%d missed, want 15; the quick one has %d, want 20", missed, got)
		}
		for _, c := range []*Conn{slow, quick, other} {
			c.Close()
		}
		synctest.Wait()
		if n := len(p.subs); n != 0 {
			t.Errorf("%d subscribers after all have left", n)
		}
	})
}
