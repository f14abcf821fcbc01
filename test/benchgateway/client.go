//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// client is one connection of the load generator. It speaks just enough HTTP
// to cost next to nothing.
type client struct {
	c  net.Conn
	in *bufio.Reader
}

func dial(addr string) (*client, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return &client{c: c, in: bufio.NewReaderSize(c, 8<<10)}, nil
}

func (c *client) close() { c.c.Close() }

// body is a request's template. Number and order are written into it before it
// is sent.
type body struct {
	raw      []byte
	order    int // where the order stands
	textFrom int // where the prompt's own number stands
}

// makeBody returns a request of about size bytes, HTTP head included in raw.
func makeBody(size int, streamed bool, seed uint64) body {
	r := rand.New(rand.NewPCG(seed, 7))
	words := strings.Fields("the of model token cache engine route prefix stream and for with fleet load decode prompt latency batch")
	js := fmt.Sprintf(orderPrefix+orderFormat+`","model":%q,"max_tokens":1024,"temperature":0.7,`, 0, 0, 0, together, model)
	if streamed {
		js += `"stream":true,"stream_options":{"include_usage":true},`
	}
	js += `"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"`
	var text strings.Builder
	at := len(js)
	text.WriteString("00000000")
	const tail = `"}]}`
	for len(js)+text.Len()+len(tail) < size {
		text.WriteString(" " + words[r.IntN(len(words))])
	}
	js += text.String() + tail
	head := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench/1\r\nAccept: application/json\r\n"+
		"Authorization: Bearer sk-bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(js))
	return body{raw: []byte(head + js), order: len(head) + len(orderPrefix), textFrom: len(head) + at}
}

// fill writes a request's number and order into its place. No two prompts are
// alike: nothing is cached, and the gateway's index has the most to do.
func (b body) fill(o order) {
	s := fmt.Appendf(nil, orderFormat, o.number, o.events, o.gap.Microseconds(), o.phase)
	copy(b.raw[b.order:], s)
	copy(b.raw[b.textFrom:], s[:8])
}

func (b body) clone() body {
	b.raw = bytes.Clone(b.raw)
	return b
}

// do sends a request and hands the answer's body to take, as it comes.
func (c *client) do(raw []byte, take func([]byte)) error {
	if err := c.c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := c.c.Write(raw); err != nil {
		return err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
		rest, _ := c.in.Peek(min(c.in.Buffered(), 600))
		return fmt.Errorf("answer %q %q", bytes.TrimSpace(line), rest)
	}
	length, chunked := 0, false
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read header: %w", err)
		}
		if len(line) <= 2 {
			break
		}
		k, v, _ := strings.Cut(string(line), ":")
		switch {
		case strings.EqualFold(k, "content-length"):
			if length, err = strconv.Atoi(strings.TrimSpace(v)); err != nil {
				return err
			}
		case strings.EqualFold(k, "transfer-encoding"):
			chunked = true
		}
	}
	if chunked {
		return c.chunks(take)
	}
	return c.pass(length, take)
}

func (c *client) chunks(take func([]byte)) error {
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read chunk: %w", err)
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 31)
		if err != nil {
			return err
		}
		if err := c.pass(int(n), take); err != nil {
			return err
		}
		if _, err := c.in.Discard(len("\r\n")); err != nil || n == 0 {
			return err
		}
	}
}

// pass hands n bytes on without waiting for all of them.
func (c *client) pass(n int, take func([]byte)) error {
	for n > 0 {
		if c.in.Buffered() == 0 {
			if _, err := c.in.Peek(1); err != nil {
				return fmt.Errorf("read body: %w", err)
			}
		}
		b, _ := c.in.Peek(min(n, c.in.Buffered()))
		take(b)
		n -= len(b)
		if _, err := c.in.Discard(len(b)); err != nil {
			return err
		}
	}
	return nil
}

// receipt is the client's side of one stream.
type receipt struct {
	fleet  *fleet
	stream *stream
	sum    uint32
	n      int
	rest   []byte    // of an event that has not come whole
	delays []float64 // seconds from the mock's write to the client's read
	first  func()    // called at the first event
}

// take cuts what comes into events.
func (r *receipt) take(b []byte) {
	now := time.Since(r.fleet.begun)
	r.sum = crc32.Update(r.sum, castagnoli, b)
	if len(r.rest) > 0 {
		r.rest = append(r.rest, b...)
		b = r.rest
	}
	for {
		end := bytes.Index(b, []byte("\n\n"))
		if end < 0 {
			break
		}
		if i := readSeq(b[:end+2]); i >= 0 && i < len(r.stream.sent) {
			r.delays = append(r.delays, (now - r.stream.sent[i]).Seconds())
		}
		if r.n++; r.n == 1 && r.first != nil {
			r.first()
		}
		b = b[end+2:]
	}
	r.rest = append(r.rest[:0], b...)
}

// verdict says whether all that was sent came, in order and unchanged.
func (r *receipt) verdict() error {
	if r.n != r.stream.sentN || r.sum != r.stream.sentSum {
		return fmt.Errorf("%d events went in with sum %08x, %d came out with sum %08x", r.stream.sentN, r.stream.sentSum, r.n, r.sum)
	}
	return nil
}

// paced sends requests at a rate, open loop: the gaps are exponential, and a
// request's time counts from when it was due. It returns those times in
// seconds.
func paced(addr string, template body, rate float64, n int, number *int, seed uint64) ([]float64, error) {
	type job struct {
		due    time.Time
		number int
	}
	jobs := make(chan job, n)
	times := make([]float64, 0, n)
	var mu sync.Mutex
	var failed error
	var working sync.WaitGroup
	for range connections {
		c, err := dial(addr)
		if err != nil {
			return nil, errors.Join(err, failed)
		}
		b := template.clone()
		working.Go(func() {
			defer c.close()
			for j := range jobs {
				b.fill(order{number: j.number, phase: together})
				got := 0
				err := c.do(b.raw, func(p []byte) { got += len(p) })
				if err == nil && got != len(wholeBody) {
					err = fmt.Errorf("answer of %d bytes, want %d", got, len(wholeBody))
				}
				mu.Lock()
				times = append(times, time.Since(j.due).Seconds())
				if err != nil {
					failed = err
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(seed, 11))
	due := time.Now()
	for range n {
		due = due.Add(time.Duration(r.ExpFloat64() / rate * float64(time.Second)))
		time.Sleep(time.Until(due))
		*number++
		jobs <- job{due, *number}
	}
	close(jobs)
	working.Wait()
	return times, failed
}

// connections is how many the load of whole answers is spread over.
const connections = 16

// streaming opens n streams at once and waits for them all. At the first event
// of the last of them it calls begun, from a goroutine of its own.
func streaming(f *fleet, addr string, template body, n int, o order, number *int, begun func()) ([]*receipt, error) {
	receipts := make([]*receipt, n)
	var working, starting sync.WaitGroup
	errs := make([]error, n)
	starting.Add(n)
	for i := range n {
		*number++
		mine := o
		mine.number = *number
		s := &stream{sent: make([]time.Duration, o.events)}
		f.streams.Store(mine.number, s)
		r := &receipt{fleet: f, stream: s, delays: make([]float64, 0, o.events), first: sync.OnceFunc(starting.Done)}
		receipts[i] = r
		c, err := dial(addr)
		if err != nil {
			return nil, err
		}
		b := template.clone()
		b.fill(mine)
		working.Go(func() {
			defer c.close()
			defer f.streams.Delete(mine.number)
			defer r.first() // also when it never came
			if errs[i] = c.do(b.raw, r.take); errs[i] == nil {
				errs[i] = r.verdict()
			}
		})
	}
	if begun != nil {
		working.Go(func() {
			starting.Wait()
			begun()
		})
	}
	working.Wait()
	if p := f.failed.Load(); p != nil {
		errs = append(errs, *p)
	}
	return receipts, errors.Join(errs...)
}
