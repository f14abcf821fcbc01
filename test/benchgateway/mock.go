//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"hash/crc32"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// model is what the fleet of mocks serves.
const model = "Qwen/Qwen3-32B"

// A request begins with what its mock is to do, at fixed places, so that
// reading it costs nothing: {"user":"NNNNNNNN-EEEEEE-GGGGGG-P", with the
// request's number, the events to stream (0: answer whole, at once), the gap
// between them in microseconds and when in it they are sent.
const (
	orderPrefix = `{"user":"`
	orderFormat = "%08d-%06d-%06d-%c"
	orderLen    = len(orderPrefix) + 8 + 1 + 6 + 1 + 6 + 1 + 1
)

// Whether the streams of one endpoint step together, as those of an engine do,
// or each by itself.
const (
	together = 't'
	spread   = 's'
)

type order struct {
	number, events int
	gap            time.Duration
	phase          byte
}

func readOrder(b []byte) (order, error) {
	var o order
	var us int
	if _, err := fmt.Sscanf(string(b), orderPrefix+"%08d-%06d-%06d-%c", &o.number, &o.events, &us, &o.phase); err != nil {
		return o, fmt.Errorf("request %q has no order: %w", b, err)
	}
	o.gap = time.Duration(us) * time.Microsecond
	return o, nil
}

// The shape of vLLM's answers. Number and sequence stand at fixed places.
const (
	eventFormat = `data: {"id":"chatcmpl-0123456789abcdef01234567%08d","object":"chat.completion.chunk","created":1790000000,"model":"` + model +
		`","choices":[{"index":0,"delta":{"content":" w%06d"},"logprobs":null,"finish_reason":null}]}` + "\n\n"
	finalEvents = `data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1790000000,"model":"` + model +
		`","choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop"}]}` + "\n\n" +
		`data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1790000000,"model":"` + model +
		`","choices":[],"usage":{"prompt_tokens":500,"total_tokens":700,"completion_tokens":200}}` + "\n\n" + "data: [DONE]\n\n"
	finalCount = 3
	streamHead = "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
	wholeBody  = `{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion","created":1790000000,"model":"` + model +
		`","choices":[{"index":0,"message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog, and the dog lets it.","refusal":null,` +
		`"annotations":null,"audio":null,"function_call":null,"tool_calls":[],"reasoning_content":null},"logprobs":null,"finish_reason":"stop","stop_reason":null}],` +
		`"service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":500,"total_tokens":517,"completion_tokens":17,"prompt_tokens_details":null},"prompt_logprobs":null}`
)

// stream is what both ends know of one stream: the mock writes when and what it
// sent, the client what came.
type stream struct {
	sent    []time.Duration // since the fleet's start, by sequence; room for all events
	sentSum uint32
	sentN   int
}

// fleet is the mock engines.
type fleet struct {
	begun     time.Time
	endpoints []*endpoint
	streams   sync.Map // request number to *stream
	events    atomic.Int64
	scrapes   atomic.Int64
	failed    atomic.Pointer[error]
}

type endpoint struct {
	fleet    *fleet
	index    int
	listener net.Listener
	whole    []byte
	page     []byte
}

// newFleet starts n endpoints.
func newFleet(n int) (*fleet, error) {
	f := &fleet{begun: time.Now()}
	page := metricsPage(pageBytes)
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			f.close()
			return nil, err
		}
		e := &endpoint{fleet: f, index: i, listener: l, page: answer("text/plain; version=0.0.4; charset=utf-8", page)}
		e.whole = answer("application/json", []byte(wholeBody))
		f.endpoints = append(f.endpoints, e)
		go e.accept()
	}
	return f, nil
}

func (f *fleet) close() {
	for _, e := range f.endpoints {
		e.listener.Close()
	}
}

// urls returns the endpoints' base URLs.
func (f *fleet) urls() []string {
	var all []string
	for _, e := range f.endpoints {
		all = append(all, "http://"+e.listener.Addr().String())
	}
	return all
}

func (f *fleet) fail(err error) { f.failed.CompareAndSwap(nil, &err) }

// answer returns a whole HTTP answer.
func answer(contentType string, body []byte) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: %s\r\n\r\n%s",
		len(body), contentType, body)
}

func (e *endpoint) accept() {
	for {
		c, err := e.listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			e.serve(c)
		}()
	}
}

// serve answers one connection's requests until it ends.
func (e *endpoint) serve(c net.Conn) {
	in := bufio.NewReaderSize(c, 16<<10)
	for {
		path, length, err := readHead(in)
		if err != nil {
			return
		}
		switch {
		case strings.HasPrefix(path, "/metrics"):
			e.fleet.scrapes.Add(1)
			_, err = c.Write(e.page)
		case strings.HasPrefix(path, "/health"):
			_, err = c.Write(answer("text/plain", nil))
		case length < orderLen:
			_, err = c.Write([]byte("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"))
		default:
			err = e.completion(c, in, length)
		}
		if err != nil {
			return
		}
	}
}

// readHead reads a request up to its body.
func readHead(in *bufio.Reader) (path string, length int, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return "", 0, err
	}
	if f := bytes.Fields(line); len(f) > 1 {
		path = string(f[1])
	}
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return "", 0, err
		}
		if len(line) <= 2 {
			return path, length, nil
		}
		const name = "content-length:"
		if len(line) > len(name) && strings.EqualFold(string(line[:len(name)]), name) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(name):]))); err != nil {
				return "", 0, err
			}
		}
	}
}

func (e *endpoint) completion(c net.Conn, in *bufio.Reader, length int) error {
	head, err := in.Peek(orderLen)
	if err != nil {
		return err
	}
	o, err := readOrder(head)
	if err != nil {
		e.fleet.fail(err)
		return err
	}
	if _, err := in.Discard(length); err != nil {
		return err
	}
	if o.events == 0 {
		_, err := c.Write(e.whole)
		return err
	}
	return e.stream(c, o)
}

// stream sends the events of an order, each in a write of its own at its time.
func (e *endpoint) stream(c net.Conn, o order) error {
	f := e.fleet
	v, ok := f.streams.Load(o.number)
	if !ok {
		err := fmt.Errorf("nobody asked for stream %d", o.number)
		f.fail(err)
		return err
	}
	s := v.(*stream)
	if s.sentN > 0 {
		err := fmt.Errorf("stream %d was asked for twice", o.number)
		f.fail(err)
		return err
	}
	if _, err := c.Write([]byte(streamHead)); err != nil {
		return err
	}
	offset := o.gap * time.Duration(e.index) / time.Duration(len(f.endpoints))
	if o.phase == spread {
		offset = time.Duration(uint64(o.number)*0x9e3779b97f4a7c15>>33) % o.gap
	}
	at := time.Since(f.begun).Truncate(o.gap) + offset + o.gap
	event := fmt.Appendf(nil, eventFormat, o.number, 0)
	chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", len(event), event)
	event = chunk[bytes.IndexByte(chunk, '\n')+1 : len(chunk)-2]
	for i := range o.events {
		writeSeq(event, i)
		time.Sleep(at + time.Duration(i)*o.gap - time.Since(f.begun))
		s.sentSum = crc32.Update(s.sentSum, castagnoli, event)
		s.sentN++
		f.events.Add(1)
		s.sent[i] = time.Since(f.begun)
		if _, err := c.Write(chunk); err != nil {
			return err
		}
	}
	s.sentSum = crc32.Update(s.sentSum, castagnoli, []byte(finalEvents))
	s.sentN += finalCount
	f.events.Add(finalCount)
	_, err := c.Write(fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", len(finalEvents), finalEvents))
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seqAt is where the six digits of an event's sequence stand.
var seqAt = bytes.Index(fmt.Appendf(nil, eventFormat, 0, 999999), []byte("999999"))

const seqDigits = 6

func writeSeq(event []byte, i int) {
	for k := seqDigits - 1; k >= 0; k-- {
		event[seqAt+k] = byte('0' + i%10)
		i /= 10
	}
}

// readSeq returns an event's sequence, -1 for one that has none.
func readSeq(event []byte) int {
	if len(event) != eventLen {
		return -1
	}
	n := 0
	for _, c := range event[seqAt : seqAt+seqDigits] {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// eventLen is the length of every event but the last three.
var eventLen = len(fmt.Sprintf(eventFormat, 0, 0))

// pageBytes is the size of vLLM's metrics page.
const pageBytes = 35 << 10

// metricsPage is a page with the gauges of an idle vLLM among histograms.
func metricsPage(size int) []byte {
	const labels = `{engine="0",model_name="` + model + `"}`
	b := []byte("# HELP vllm:num_requests_running Number of requests in model execution batches.\n# TYPE vllm:num_requests_running gauge\n" +
		"vllm:num_requests_running" + labels + " 0.0\nvllm:num_requests_waiting" + labels + " 0.0\nvllm:kv_cache_usage_perc" + labels + " 0.0\n" +
		`vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="27000"} 1.0` + "\n")
	for i := 0; len(b) < size; i++ {
		if i%20 == 0 {
			b = fmt.Appendf(b, "# HELP vllm:latency_%d_seconds Histogram of one of the many phases of a request.\n# TYPE vllm:latency_%d_seconds histogram\n", i/20, i/20)
		}
		b = fmt.Appendf(b, "vllm:latency_%d_seconds_bucket{engine=\"0\",le=\"%d.0\",model_name=%q} %d.0\n", i/20, i%20, model, i*7)
	}
	return b
}
