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
	// settled is how long a connection must have lasted to be worth no wait.
	settled = time.Second
)

// wait returns how long to wait before the n-th try in a row, from 0: doubling
// to a limit, and spread so that gateways do not come back together.
func wait(n int) time.Duration {
	d := min(firstWait<<min(n, 10), longWait)
	return d/2 + rand.N(d/2)
}

// How half-open connections are found: by TCP, and by ZMTP where the peer has
// PING.
const (
	tcpIdle   = 15 * time.Second
	tcpProbe  = 5 * time.Second
	pingEvery = 5 * time.Second
	deadAfter = 15 * time.Second // of a peer that has answered a PING before
	settle    = time.Second      // that a peer may take to answer the first
)

// A Dialer connects to an address of a network, as net.Dialer does.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// dialer is the Dialer over real networks.
func dialer() Dialer {
	d := net.Dialer{Timeout: handshakeTime, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: tcpIdle, Interval: tcpProbe, Count: 3}}
	return d.DialContext
}

// Dial connects a socket of the given type to address (host:port). The
// connection is closed with ctx.
func Dial(ctx context.Context, address, socket string) (*Conn, error) {
	return dialer().socket(ctx, "tcp", address, socket)
}

// socket connects a socket of the given type. The connection is closed with ctx.
func (d Dialer) socket(ctx context.Context, network, address, socket string) (*Conn, error) {
	nc, err := d(ctx, network, address)
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
			if time.Since(begun) > settled {
				tries = 0
			}
		}
		cancel()
		if pause(ctx, wait(tries)); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
