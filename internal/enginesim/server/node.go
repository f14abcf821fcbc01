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

	url    string
	kv     [2]net.Listener // of KV events and of replays; nil for none
	http   *http.Server
	stop   context.CancelFunc
	done   chan struct{}
	ending sync.Once
	work   sync.WaitGroup
}

// Listen starts an engine at addr, such as "127.0.0.1:0", and returns when it
// accepts connections. The caller ends it with Shutdown or Close.
func Listen(addr string, c Config) (*Node, error) {
	n := &Node{done: make(chan struct{})}
	if c.OnCrash == nil {
		c.OnCrash = func() { _ = n.Close() }
	}
	s, err := New(c)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("simulated engine: listening on %s: %w", addr, err)
	}
	n.Server = s
	if err := n.listenKV(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.url = "http://" + l.Addr().String()
	if c.TLS != nil {
		n.url = "https://" + l.Addr().String()
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!c.HTTP1Only)
	protocols.SetUnencryptedHTTP2(!c.HTTP1Only)
	n.http = &http.Server{
		Handler:           s.Handler(),
		TLSConfig:         c.TLS,
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		// Broken connections are this server's business, not news.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	n.work.Go(func() { s.Run(ctx) })
	n.acceptKV(n.kv[0], s.ServeKVEvents)
	n.acceptKV(n.kv[1], s.ServeKVReplay)
	n.work.Go(func() { // always ends with ErrServerClosed, by Shutdown or Close
		if c.TLS != nil {
			_ = n.http.ServeTLS(l, "", "")
			return
		}
		_ = n.http.Serve(l)
	})
	return n, nil
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
	err := n.http.Shutdown(ctx)
	return errors.Join(err, n.Close())
}

// Close ends the engine as if its process were killed: the listener and every
// connection are closed in the middle of whatever they do.
func (n *Node) Close() error {
	err := n.http.Close()
	n.ending.Do(func() {
		n.stop()
		n.closeKV()
		n.work.Wait()
		close(n.done)
	})
	return err
}
