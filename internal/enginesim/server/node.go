package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Node is a Server that listens: a simulated engine at an address, as if it
// were a process of its own.
type Node struct {
	Server *Server

	url  string
	kv   [2]net.Listener // of KV events and of replays; nil for none
	http *http.Server    // nil for a rank behind a front
	stop context.CancelFunc

	side      net.Listener // of the side channel; nil for none
	bootstrap *http.Server // nil for none

	done   chan struct{}
	ending sync.Once
	work   sync.WaitGroup
}

// Listen starts an engine at addr, such as "127.0.0.1:0", and returns when it
// accepts connections. The caller ends it with Shutdown or Close.
func Listen(addr string, c Config) (*Node, error) {
	n, err := newNode(c)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("simulated engine: listening on %s: %w", addr, err)
	}
	if err := n.start(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	n.url = urlOf(l, c)
	n.Server.eyes.serveAt(l.Addr())
	n.http = c.httpServer(n.Server.Handler())
	n.work.Go(func() { serveHTTP(n.http, l) })
	return n, nil
}

// newNode makes an engine that a crash ends.
func newNode(c Config) (*Node, error) {
	n := &Node{done: make(chan struct{})}
	if c.OnCrash == nil {
		c.OnCrash = func() { _ = n.Close() }
	}
	var err error
	n.Server, err = New(c)
	return n, err
}

// start runs the engine and tells of its KV; it answers no requests yet.
func (n *Node) start() error {
	if err := n.listenKV(); err != nil {
		return err
	}
	if err := n.listenPD(); err != nil {
		n.closeKV()
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.work.Go(func() { n.Server.Run(ctx) })
	n.acceptKV(n.kv[0], n.Server.ServeKVEvents)
	n.acceptKV(n.kv[1], n.Server.ServeKVReplay)
	return nil
}

func urlOf(l net.Listener, c Config) string {
	if c.TLS != nil {
		return "https://" + l.Addr().String()
	}
	return "http://" + l.Addr().String()
}

// httpServer returns what speaks HTTP as the configuration says.
func (c Config) httpServer(h http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!c.HTTP1Only)
	protocols.SetUnencryptedHTTP2(!c.HTTP1Only)
	return &http.Server{
		Handler:           h,
		TLSConfig:         c.TLS,
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		// Broken connections are this server's business, not news.
		ErrorLog: log.New(io.Discard, "", 0),
	}
}

// serveHTTP always ends with ErrServerClosed, by Shutdown or Close.
func serveHTTP(h *http.Server, l net.Listener) {
	if h.TLSConfig != nil {
		_ = h.ServeTLS(l, "", "")
		return
	}
	_ = h.Serve(l)
}

// listenKV opens the ports of KV events and replays.
func (n *Node) listenKV() error {
	o := n.Server.options
	for i, first := range []string{o.KVEvents, o.KVReplay} {
		if first == "" {
			continue
		}
		address, err := kvAddress(first, o.Replica+o.KVRank)
		if err == nil {
			n.kv[i], err = net.Listen("tcp", address)
		}
		if err != nil {
			n.closeKV()
			return fmt.Errorf("simulated engine: KV events: %w", err)
		}
	}
	return nil
}

// acceptKV has serve speak with whoever connects to l.
func (n *Node) acceptKV(l net.Listener, serve func(net.Conn) error) {
	if l == nil {
		return
	}
	n.work.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return // closed
			}
			n.work.Go(func() { _ = serve(nc) }) // a peer that leaves is no news
		}
	})
}

func (n *Node) closeKV() {
	for _, l := range n.kv {
		if l != nil {
			l.Close()
		}
	}
}

// KVAddresses returns where KV events are published and where replays are asked
// for, as host:port; empty for nowhere.
func (n *Node) KVAddresses() (events, replay string) {
	var a [2]string
	for i, l := range n.kv {
		if l != nil {
			a[i] = l.Addr().String()
		}
	}
	return a[0], a[1]
}

// URL returns where the engine is, without a slash at the end.
func (n *Node) URL() string { return n.url }

// Done is closed once the engine serves no more: after Shutdown, Close or a
// crash.
func (n *Node) Done() <-chan struct{} { return n.done }

// Shutdown stops accepting, lets requests finish until ctx ends, then closes.
func (n *Node) Shutdown(ctx context.Context) error {
	var err error
	if n.http != nil {
		err = n.http.Shutdown(ctx)
	}
	return errors.Join(err, n.Close())
}

// Close ends the engine as if its process were killed: the listener and every
// connection are closed in the middle of whatever they do.
func (n *Node) Close() error {
	var err error
	if n.http != nil {
		err = n.http.Close()
	}
	n.ending.Do(func() {
		n.stop()
		n.closeKV()
		n.closePD()
		n.work.Wait()
		close(n.done)
	})
	return err
}
