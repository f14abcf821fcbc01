package gateway

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/fleet"
)

// cut returns s in pieces of n bytes.
func cut(s string, n int) []string {
	var parts []string
	for len(s) > n {
		parts, s = append(parts, s[:n]), s[n:]
	}
	return append(parts, s)
}

func TestStreamsPassUnchanged(t *testing.T) {
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	big := `data: {"choices":[{"index":0,"delta":{"content":"` + strings.Repeat("x", 900_000) + `"}}]}` + "\n\n"
	for _, c := range []struct {
		name   string
		stream string
		sizes  []int
		events int // that carry output
		usage  bool
	}{
		{"plain", whole, []int{1, 7, 64, 1 << 20}, 2, true},
		{"CRLF", crlf(whole), []int{1, 5, 1 << 20}, 2, true},
		{"CR", strings.ReplaceAll(whole, "\n", "\r"), []int{1, 9, 1 << 20}, 2, true},
		{"comments and other fields", ": hello\n\n" + role + ": ping\n\n:\n\nid: 7\nretry: 10\n" + word + word + "event: x\n" + finish + usage + done, []int{3, 1 << 20}, 2, true},
		{"no finish reason but [DONE]", role + word + word + done, []int{10, 1 << 20}, 2, false},
		{"finish reason but no [DONE]", role + word + word + finish, []int{10, 1 << 20}, 2, false},
		{"only [DONE]", done, []int{1, 100}, 0, false},
		{"more after [DONE]", whole + ": bye\n\n", []int{2, 1 << 20}, 2, true},
		{"an event of 900 kB", role + big + finish + done, []int{4096, 70_000}, 1, false},
		{"many events", role + strings.Repeat(word, 2000) + finish + usage + done, []int{4000, 1 << 20}, 2000, true},
	} {
		for _, size := range c.sizes {
			e := newEngine(t, func(w http.ResponseWriter, _ *http.Request) { pieces(w, cut(c.stream, size)...) })
			r := newRig(t, setup{}, e)
			a := r.do("POST", chatPath, streamBody)
			if a.err != nil || a.status != 200 || a.body != c.stream || a.header.Get("Content-Type") != "text/event-stream; charset=utf-8" {
				t.Errorf("%s in pieces of %d: status %d, %v, %v; %d bytes, want %d", c.name, size, a.status, a.err, a.header, len(a.body), len(c.stream))
				continue
			}
			x := r.access()
			if x.Status != 200 || x.Failure != fleet.FailNone || x.Err != nil || x.Events != c.events || !x.Stream || x.Bytes != int64(len(c.stream)) {
				t.Errorf("%s in pieces of %d: account %+v", c.name, size, x)
			}
			if c.usage && x.Usage != wholeUsage || !c.usage && (x.Usage.Known || int(x.Usage.Output) != c.events) {
				t.Errorf("%s in pieces of %d: usage %+v", c.name, size, x.Usage)
			}
			if (x.TTFT > 0) != (c.events > 0) {
				t.Errorf("%s: TTFT %v", c.name, x.TTFT)
			}
		}
	}
}

// TestEveryEventIsFlushedAtOnce: the engine sends event n+1 only after the
// client has said that it holds event n.
func TestEveryEventIsFlushedAtOnce(t *testing.T) {
	const n = 50
	ack := make(chan struct{})
	e := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		for range n {
			pieces(w, word)
			select {
			case <-ack:
			case <-r.Context().Done():
				return
			}
		}
		pieces(w, finish, done)
	})
	r := newRig(t, setup{}, e)
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, "POST", r.front.URL+chatPath, strings.NewReader(streamBody))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.front.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	for i := range n {
		got := make([]byte, len(word))
		if _, err := io.ReadFull(in, got); err != nil || string(got) != word {
			t.Fatalf("event %d: %q, %v", i, got, err)
		}
		ack <- struct{}{}
	}
	if rest, err := io.ReadAll(in); err != nil || string(rest) != finish+done {
		t.Errorf("the end: %q, %v", rest, err)
	}
}

// TestDoneIsTheEnd: an engine that keeps the connection open after [DONE], or
// breaks it, has answered all the same.
func TestDoneIsTheEnd(t *testing.T) {
	for name, after := range map[string]func(r *http.Request){
		"stays open": func(r *http.Request) { <-r.Context().Done() },
		"breaks":     func(*http.Request) { panic(http.ErrAbortHandler) },
	} {
		e := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
			pieces(w, whole)
			after(r)
		})
		r := newRig(t, setup{limits: Limits{Idle: 50 * time.Millisecond}}, e)
		if a := r.do("POST", chatPath, streamBody); a.err != nil || a.body != whole {
			t.Errorf("%s: %v, %q", name, a.err, a.body)
		}
		if x := r.access(); x.Failure != fleet.FailNone || x.Usage != wholeUsage {
			t.Errorf("%s: account %+v", name, x)
		}
		if c := r.pool.Tally(); c.Done != 1 {
			t.Errorf("%s: tally %+v", name, c)
		}
	}
}

// TestClientMayLeaveAtDone: some clients close the connection when they see
// [DONE]; they have had their answer.
func TestClientMayLeaveAtDone(t *testing.T) {
	e := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		pieces(w, whole)
		<-r.Context().Done()
	})
	r := newRig(t, setup{}, e)
	c := r.raw("POST " + chatPath + " HTTP/1.0\r\nContent-Length: " + strconv.Itoa(len(streamBody)) + "\r\n\r\n" + streamBody)
	in := bufio.NewReader(c)
	for line := ""; line != "data: [DONE]\n"; {
		var err error
		if line, err = in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	if x := r.access(); x.Status != 200 || x.Err != nil {
		t.Errorf("account %+v", x)
	}
	if c := r.pool.Tally(); c.Done != 1 || c.Cancelled != 0 {
		t.Errorf("tally %+v", c)
	}
}

// TestAnswersOfTheOtherKindPassToo: some engines do not stream; some always do.
func TestAnswersOfTheOtherKindPassToo(t *testing.T) {
	e := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); strings.Contains(string(body), `"stream":true`) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, wholeReply)
			return
		}
		pieces(w, whole)
	})
	r := newRig(t, setup{}, e)
	if a := r.do("POST", chatPath, streamBody); a.body != wholeReply {
		t.Errorf("%+v", a)
	}
	if a := r.do("POST", chatPath, chatBody); a.body != whole {
		t.Errorf("%+v", a)
	}
}

// broken is the event that the gateway ends a broken stream with.
func broken(f fleet.Failure) string { return string(api.StreamBroke(f).Event(api.OpenAI, "")) }

// TestBrokenStreamsEndInAnError: after the first event nothing is retried and
// nothing doubled; the client is told, and keeps what was whole.
func TestBrokenStreamsEndInAnError(t *testing.T) {
	hang := func(r *http.Request) { <-r.Context().Done() }
	breakOff := func(*http.Request) { panic(http.ErrAbortHandler) }
	own := `data: {"error":{"message":"out of memory","type":"InternalServerError","code":500}}` + "\n\n"
	full := `data: {"error":{"message":"full","code":503}}` + "\n\n"
	for _, c := range []struct {
		name, stream string
		after        func(*http.Request)
		kept, last   string
		failure      fleet.Failure
	}{
		{"half an event, then a clean end", role + word + `data: {"choi`, nil, role + word, broken(fleet.FailStream), fleet.FailStream},
		{"half an event, then cut", role + word + `data: {"choi`, breakOff, role + word, broken(fleet.FailStream), fleet.FailStream},
		{"cut between events", role + word, breakOff, role + word, broken(fleet.FailStream), fleet.FailStream},
		{"clean end without a finish", role + word, nil, role + word, broken(fleet.FailStream), fleet.FailStream},
		{"an unended last line", role + word + "data: [DONE]\n", nil, role + word, broken(fleet.FailStream), fleet.FailStream},
		{"garbage data", role + word + "data: \x80\x81{{\n\n" + word + done, nil, role + word, broken(fleet.FailGarbage), fleet.FailGarbage},
		{"an event over 1 MiB", role + word + "data: " + strings.Repeat("x", 2<<20) + "\n\n", nil, role + word, broken(fleet.FailGarbage), fleet.FailGarbage},
		{"binary without an end", role + word + strings.Repeat("\x00\x01\x02", 1<<19), breakOff, role + word, broken(fleet.FailGarbage), fleet.FailGarbage},
		{"the engine's own error", role + word + own + done, nil, role + word + own, "", fleet.FailStatus},
		{"the engine's own overload", role + word + full, nil, role + word + full, "", fleet.FailOverload},
		{"silence", role + word, hang, role + word, broken(fleet.FailTimeout), fleet.FailTimeout},
		{"silence inside an event", role + word + "data: {", hang, role + word, broken(fleet.FailTimeout), fleet.FailTimeout},
		{"cut after the finish but inside usage", role + word + finish + usage[:20], breakOff, role + word + finish, broken(fleet.FailStream), fleet.FailStream},
	} {
		asked := make(chan struct{}, 10)
		h := func(w http.ResponseWriter, r *http.Request) {
			asked <- struct{}{}
			pieces(w, c.stream)
			if c.after != nil {
				c.after(r)
			}
		}
		r := newRig(t, setup{limits: Limits{Idle: 50 * time.Millisecond, FirstByte: 5 * time.Second}}, newEngine(t, h), newEngine(t, h))
		a := r.do("POST", chatPath, streamBody)
		if a.status != 200 || a.err != nil || a.body != c.kept+c.last {
			t.Errorf("%s: status %d, %v, got %.300q", c.name, a.status, a.err, a.body)
		}
		x := r.access()
		if x.Failure != c.failure || x.Err == nil || x.Attempts != 1 || len(asked) != 1 || x.Status != 200 || x.Events != 1 {
			t.Errorf("%s: asked %d times, account %+v", c.name, len(asked), x)
		}
		if c.failure == fleet.FailTimeout && !strings.Contains(x.Err.Error(), "idle timeout") {
			t.Errorf("%s: logged as %v", c.name, x.Err)
		}
		if c := r.pool.Tally(); c.Failed != 1 || c.Retried != 0 {
			t.Errorf("tally %+v", c)
		}
	}
}
