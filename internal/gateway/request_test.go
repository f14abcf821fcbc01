package gateway

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// reply reads one HTTP answer off a raw connection.
func reply(t testing.TB, c io.Reader) answer {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body), err}
}

func TestBadRequestsReachNoEngine(t *testing.T) {
	e := newEngine(t, func(http.ResponseWriter, *http.Request) { t.Error("an engine was asked") })
	r := newRig(t, setup{models: []Model{{ID: "m"}}}, e)
	for _, c := range []struct {
		path, body string
		status     int
		code       string
	}{
		{chatPath, ``, 400, "invalid_body"},
		{chatPath, `{"model":"m","messages":[`, 400, "invalid_body"},
		{chatPath, `not JSON`, 400, "invalid_body"},
		{chatPath, `[1]`, 400, "invalid_body"},
		{chatPath, `{"messages":[]}`, 400, "invalid_field"},
		{chatPath, `{"model":"m"}`, 400, "invalid_field"},
		{chatPath, `{"model":5,"messages":[]}`, 400, "invalid_field"},
		{chatPath, `{"model":"m","messages":"hi"}`, 400, "invalid_field"},
		{chatPath, `{"model":"m","messages":[],"stream":"yes"}`, 400, "invalid_field"},
		{chatPath, `{"model":"m","messages":[],"max_tokens":"ten"}`, 400, "invalid_field"},
		{textPath, `{"model":"m","prompt":{}}`, 400, "invalid_field"},
		{textPath, `{"model":"m"}`, 400, "invalid_field"},
		{textPath, `{"model":"other","prompt":"x"}`, 404, "model_not_found"},
		{chatPath, `{"model":"` + strings.Repeat("m", 1<<20) + `","messages":[]}`, 400, "invalid_field"},
	} {
		wantProblem(t, r.do("POST", c.path, c.body), c.status, c.code)
		a := r.access()
		if a.Status != c.status || a.Attempts != 0 || len(a.Model) > 512 {
			t.Errorf("%.60s: logged as %d with %d attempts, model of %d bytes", c.body, a.Status, a.Attempts, len(a.Model))
		}
	}
	if c := r.pool.Tally(); c.Arrived != 0 {
		t.Errorf("tally %+v", c)
	}
}

const mib = 1 << 20

func TestBodyOf40MiBIsRefused(t *testing.T) {
	e := newEngine(t, func(http.ResponseWriter, *http.Request) { t.Error("an engine was asked") })
	r := newRig(t, setup{}, e)
	block := bytes.Repeat([]byte(" "), mib)

	announced := r.raw(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n", chatPath, 40*mib))
	a := reply(t, announced)
	wantProblem(t, a, 413, "body_too_large")
	r.access()

	chunked := r.raw("POST " + chatPath + " HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n")
	go func() {
		for range 40 {
			// The gateway may close before all is sent.
			if _, err := fmt.Fprintf(chunked, "%x\r\n%s\r\n", mib, block); err != nil {
				return
			}
		}
	}()
	wantProblem(t, reply(t, chunked), 413, "body_too_large")
	if got := r.access(); got.Status != 413 {
		t.Errorf("logged as %d", got.Status)
	}
}

func TestBodyAtTheLimitIsTaken(t *testing.T) {
	got := make(chan int, 2)
	e := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- len(b)
		w.Write([]byte(wholeReply))
	})
	r := newRig(t, setup{limits: Limits{MaxBody: 100_000}}, e)
	body := chatBody + strings.Repeat(" ", 100_000-len(chatBody))
	if a := r.do("POST", chatPath, body); a.status != 200 || <-got != 100_000 {
		t.Errorf("%+v", a)
	}
	c := r.raw(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", chatPath, len(body), body))
	if a := reply(t, c); a.status != 200 || <-got != 100_000 {
		t.Errorf("chunked: %+v", a)
	}
	wantProblem(t, r.do("POST", chatPath, body+" "), 413, "body_too_large")
}

// TestAnnouncedBodiesTakeNoMemory: a hundred clients that announce 30 MiB and
// send nothing must not cost 3 GB.
func TestAnnouncedBodiesTakeNoMemory(t *testing.T) {
	r := newRig(t, setup{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var conns []io.Closer
	for range 100 {
		conns = append(conns, r.raw(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n{", chatPath, 30*mib)))
	}
	first := r.raw("GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n") // behind them all
	if a := reply(t, first); a.status != 200 {
		t.Fatalf("%+v", a)
	}
	for _, c := range conns {
		c.Close()
	}
	for range conns {
		r.access() // each has been read from by now
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64*mib {
		t.Errorf("%d MiB were taken", grown/mib)
	}
}

func TestSlowBodyIsGivenUp(t *testing.T) {
	r := newRig(t, setup{limits: Limits{BodyTimeout: 50 * time.Millisecond}}, closedPort(t))
	c := r.raw("POST " + chatPath + " HTTP/1.1\r\nHost: g\r\nContent-Length: 100\r\n\r\n{\"model\"")
	a := reply(t, c)
	wantProblem(t, a, 408, "body_timeout")
	if got := r.access(); got.Status != 408 || got.Err == nil {
		t.Errorf("logged as %d, %v", got.Status, got.Err)
	}
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection stays open: %d, %v", n, err)
	}
}

// TestSlowBodyHoldsNoOtherRoute: net/http reads the body of a request that its
// handler has no use for.
func TestSlowBodyHoldsNoOtherRoute(t *testing.T) {
	r := newRig(t, setup{limits: Limits{BodyTimeout: 50 * time.Millisecond, MaxBody: 64}})
	for _, c := range []struct {
		head   string
		status int
		code   string
	}{
		{"PUT /nothing", 404, "unknown_url"}, {"POST /sleep", 404, "unknown_url"}, {"PUT /v1/models", 405, "method_not_allowed"}, {"POST " + chatPath, 413, "body_too_large"},
	} {
		conn := r.raw(c.head + " HTTP/1.1\r\nHost: g\r\nContent-Length: 100\r\n\r\n{")
		wantProblem(t, reply(t, conn), c.status, c.code)
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("%s: the connection stays open: %v", c.head, err)
		}
	}
}

func TestBrokenBodyFraming(t *testing.T) {
	r := newRig(t, setup{}, closedPort(t))
	c := r.raw("POST " + chatPath + " HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}")
	wantProblem(t, reply(t, c), 400, "invalid_body")
	if a := r.access(); a.Status != 400 || a.Err == nil {
		t.Errorf("logged as %d, %v", a.Status, a.Err)
	}
}

// TestHalfABodyIsNotAnswered200: net/http would answer 200 for a handler that
// just returns.
func TestHalfABodyIsNotAnswered200(t *testing.T) {
	r := newRig(t, setup{}, closedPort(t))
	c := r.raw("POST " + chatPath + " HTTP/1.1\r\nHost: g\r\nContent-Length: 100\r\n\r\n{\"model\"")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err == nil && len(got) > 0 {
		t.Errorf("answered %q", got)
	}
	if a := r.access(); a.Status != statusGone || a.Err == nil {
		t.Errorf("logged as %d, %v", a.Status, a.Err)
	}
}

// TestPipelinedRequestsAreAnsweredInOrder also holds that the time limit of one
// request does not fall on the next of its connection.
func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	e := newEngine(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	r := newRig(t, setup{}, e)
	var all strings.Builder
	for i := range 5 {
		body := fmt.Sprintf(`{"model":"m","messages":[],"n":%d}`, i)
		fmt.Fprintf(&all, "POST %s HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n%s", chatPath, len(body), body)
	}
	in := bufio.NewReader(r.raw(all.String()))
	for i := range 5 {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprintf(`{"model":"m","messages":[],"n":%d}`, i); err != nil || string(b) != want {
			t.Errorf("answer %d: %s, %v", i, b, err)
		}
	}
}

func TestWholeAnswersPassUnchanged(t *testing.T) {
	type asked struct{ path, body string }
	got := make(chan asked, 1)
	e := newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- asked{r.URL.Path, string(b)}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.Write([]byte(wholeReply))
	})
	r := newRig(t, setup{}, e)
	for path, body := range map[string]string{
		chatPath: "  " + chatBody + "\r\n", textPath: `{"model":"m","prompt":[1,2,3],"unknown":{"a":[1e5]}}`,
	} {
		a := r.do("POST", path, body)
		if a.status != 200 || a.body != wholeReply || a.header.Get("Content-Type") != "application/json; charset=utf-8" {
			t.Errorf("%+v", a)
		}
		if q := <-got; q.path != path || q.body != body {
			t.Errorf("the engine was asked %q", q)
		}
		x := r.access()
		if x.Status != 200 || x.Usage != wholeUsage || x.Attempts != 1 || x.Endpoint != "e0" || x.Bytes != int64(len(wholeReply)) ||
			x.Failure != fleet.FailNone || x.Err != nil || len(x.Decisions) != 1 || x.Model != "m" || x.Pool != "p" || x.Stream || x.Path != path {
			t.Errorf("account %+v", x)
		}
	}
	if c := r.pool.Tally(); c.Done != 2 {
		t.Errorf("tally %+v", c)
	}
}

// TestPromptEstimateLearns: what engines report corrects the bytes per token.
func TestPromptEstimateLearns(t *testing.T) {
	e := newEngine(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(wholeReply)) })
	r := newRig(t, setup{}, e)
	body := `{"model":"m","prompt":"` + strings.Repeat("x", 198) + `"}` // 200 bytes, which the engine calls 100 tokens
	for i, want := range []fleet.Tokens{50, 100} {
		r.do("POST", textPath, body)
		if a := r.access(); a.Prompt != want {
			t.Errorf("request %d is estimated at %d tokens, want %d", i+1, a.Prompt, want)
		}
	}
}
