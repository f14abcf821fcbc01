package kvfeed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// How fast a lost peer is tried again.
const (
	firstWait = 100 * time.Millisecond
	longWait  = 10 * time.Second
)

// wait returns how long to wait before the n-th try in a row, from 0: doubling
// to a limit, and spread so that gateways do not come back together.
func wait(n int) time.Duration {
	d := min(firstWait<<min(n, 10), longWait)
	return d/2 + rand.N(d/2)
}

// Dial connects a socket of the given type to address (host:port). The
// connection is closed with ctx.
func Dial(ctx context.Context, address, socket string) (*Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	c, err := NewConn(nc, socket)
	if err != nil {
		stop()
		return nil, err
	}
	return c, nil
}

// Keep has use work on one connection after the other until ctx ends, which is
// what it returns. It waits between them, for longer the more often a peer
// cannot be had.
func Keep(ctx context.Context, dial func(context.Context) (*Conn, error), use func(*Conn) error) error {
	for tries := 0; ; tries++ {
		one, cancel := context.WithCancel(ctx)
		if c, err := dial(one); err == nil {
			begun := time.Now()
			_ = use(c) // why it ended is known to use
			c.Close()
			if time.Since(begun) > longWait {
				tries = 0
			}
		}
		cancel()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait(tries)):
		}
	}
}
