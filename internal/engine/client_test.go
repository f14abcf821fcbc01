package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

func newClient(t *testing.T) *Client {
	t.Helper()
	c := NewClient(Options{})
	t.Cleanup(c.Close)
	return c
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// rawEngine answers every connection's first request with the given bytes and
// closes it.
func rawEngine(t *testing.T, answer string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(c, answer)
			}
			c.Close()
		}
	}()
	return "http://" + l.Addr().String()
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func TestSendPassesBytesAndHeader(t *testing.T) {
	var got []byte
	var header http.Header
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got, _ = io.ReadAll(r.Body)
		header = r.Header.Clone()
		fmt.Fprint(w, r.URL.Path)
	})
	body := []byte("{ \"model\" : \"m\"}\r\n")
	resp, failure, err := newClient(t).Send(t.Context(), base, "/v1/x", http.Header{"X-Request-Id": {"id-1"}}, body)
	if err != nil || failure != fleet.FailNone {
		t.Fatal(failure, err)
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(resp.Body)
	if !bytes.Equal(got, body) || string(answer) != "/v1/x" || header.Get("X-Request-Id") != "id-1" {
		t.Errorf("engine got %q with %v, answered %q", got, header, answer)
	}
	if header.Get("Accept-Encoding") != "" {
		t.Errorf("compression was asked for: %v", header)
	}
}

func TestSendClassifiesFailures(t *testing.T) {
	c := newClient(t)
	for _, f := range []struct {
		name string
		base string
		want fleet.Failure
	}{
		{"connection refused", closedPort(t), fleet.FailConnect},
		{"not HTTP", rawEngine(t, "\x15\x03\x01\x00\x02\x02\x16 what\r\n\r\n"), fleet.FailGarbage},
		{"a status that is none", rawEngine(t, "HTTP/1.1 2x0 OK\r\n\r\n"), fleet.FailGarbage},
		{"a header that is none", rawEngine(t, "HTTP/1.1 200 OK\r\n: :\x00\r\n\r\n"), fleet.FailGarbage},
		{"closed without an answer", rawEngine(t, ""), fleet.FailConnect},
		{"overloaded", serve(t, status(503)), fleet.FailOverload},
		{"rate limited", serve(t, status(429)), fleet.FailOverload},
		{"broken", serve(t, status(500)), fleet.FailStatus},
		{"the gateway is not let in", serve(t, status(401)), fleet.FailStatus},
		{"redirect", serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}), fleet.FailStatus},
		{"client's fault", serve(t, status(422)), fleet.FailClient},
	} {
		resp, got, err := c.Send(t.Context(), f.base, "/v1/x", http.Header{}, nil)
		if resp != nil {
			resp.Body.Close()
		}
		if got != f.want {
			t.Errorf("%s: %v (%v), want %v", f.name, got, err, f.want)
		}
		if (resp == nil) != (err != nil) {
			t.Errorf("%s: answer %v and error %v", f.name, resp, err)
		}
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func TestClassifyKnowsItsOwnTimeouts(t *testing.T) {
	for err, want := range map[error]fleet.Failure{
		ErrFirstByte:                          fleet.FailTimeout,
		fmt.Errorf("wrapped: %w", ErrIdle):    fleet.FailTimeout,
		context.DeadlineExceeded:              fleet.FailTimeout,
		io.ErrUnexpectedEOF:                   fleet.FailConnect,
		&net.OpError{Op: "dial", Err: slow{}}: fleet.FailConnect,
		&net.OpError{Op: "read", Err: slow{}}: fleet.FailTimeout,
	} {
		if got := Classify(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

// slow is a network error that says it is a timeout.
type slow struct{}

func (slow) Error() string   { return "too slow" }
func (slow) Timeout() bool   { return true }
func (slow) Temporary() bool { return false }

func TestSendStopsWithItsContext(t *testing.T) {
	gone := make(chan struct{})
	base := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, failure, err := newClient(t).Send(ctx, base, "/", http.Header{}, []byte("{}")); failure != fleet.FailTimeout || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", failure, err)
	}
	<-gone
}

func TestHealthy(t *testing.T) {
	vllm, err := DialectByName("vllm")
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t)
	if err := c.Healthy(t.Context(), vllm, serve(t, status(200))); err != nil {
		t.Error(err)
	}
	for name, base := range map[string]string{"503": serve(t, status(503)), "302": serve(t, status(302)), "refused": closedPort(t)} {
		if err := c.Healthy(t.Context(), vllm, base); err == nil {
			t.Errorf("%s: healthy", name)
		}
	}
}

func TestDialects(t *testing.T) {
	for _, n := range DialectNames() {
		if d, err := DialectByName(n); err != nil || d.Name != n || !strings.HasPrefix(d.Health, "/") {
			t.Errorf("%s: %+v %v", n, d, err)
		}
	}
	if _, err := DialectByName("klingon"); err == nil || !strings.Contains(err.Error(), "vllm") {
		t.Errorf("%v, want an error that names those known", err)
	}
}

func TestModels(t *testing.T) {
	c := newClient(t)
	page := func(body string) string {
		return serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })
	}
	got, err := c.Models(t.Context(), page(`{"data":[{"id":"base","max_model_len":4096,"parent":null},{"id":""},{"id":"lora","parent":"base","max_model_len":-1}]}`))
	want := []Model{{ID: "base", MaxModelLen: 4096}, {ID: "lora", Parent: "base"}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
	for name, base := range map[string]string{
		"empty": page(`{"data":[]}`), "not JSON": page("<html>"), "too large": page(`{"data":[{"id":"` + strings.Repeat("x", maxModelList) + `"}]}`),
		"404": serve(t, http.NotFound), "refused": closedPort(t),
	} {
		if m, err := c.Models(t.Context(), base); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func TestModelsOfRecordedEngines(t *testing.T) {
	for _, f := range []struct {
		dir, name, id, parent string
	}{
		{"ollama", "models", "random-tiny:latest", ""},
		{"llm-d-inference-sim", "models-with-adapter", "", "base-model"},
	} {
		_, body, _ := bytes.Cut(capture(t, f.dir, f.name+".response.http"), []byte("\r\n\r\n"))
		got, err := newClient(t).Models(t.Context(), serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }))
		if err != nil || len(got) == 0 {
			t.Fatalf("%s: %+v %v", f.name, got, err)
		}
		found := false
		for _, m := range got {
			found = found || f.id != "" && m.ID == f.id || f.parent != "" && m.Parent == f.parent
		}
		if !found {
			t.Errorf("%s: %+v has no model %q with parent %q", f.name, got, f.id, f.parent)
		}
	}
}
