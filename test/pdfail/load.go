package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/obs"
)

// The requests of the load: about so many tokens of prompt, of which no two begin
// alike, and exactly so many of answer.
const (
	promptTokens = 1500
	answerTokens = 48
)

// slow is how long a request may take that is served as it should be. A normal one
// takes a quarter of that.
const slow = 600 * time.Millisecond

// result is one request as its client saw it, and what the gateway recorded of it.
type result struct {
	id             string
	arrived, ended time.Time
	status         int
	begun          bool // text has come
	whole          bool // and all of it
	wrong          bool // all of it, and not what the model says
	why            string

	attempts        int
	prefill, decode string // of the last attempt
}

// normal reports whether r was served as if nothing had happened: once, by two
// engines, in the usual time.
func (r *result) normal() bool {
	return r.whole && !r.wrong && r.attempts == 1 && r.prefill != "" && r.ended.Sub(r.arrived) < slow
}

func (r *result) via(endpoint string) bool { return r.prefill == endpoint || r.decode == endpoint }

// load is an open loop of requests: arrivals wait for nobody.
type load struct {
	rig  *rig
	rate float64
	name string

	mu      sync.Mutex
	open    map[string]time.Time
	results []result
	stop    context.CancelFunc
	work    sync.WaitGroup
}

func startLoad(r *rig, name string, rate float64, seed uint64) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{rig: r, rate: rate, name: name, open: map[string]time.Time{}, stop: stop}
	l.work.Go(func() { l.run(ctx, rand.New(rand.NewPCG(seed, 7))) })
	return l
}

// run sends until ctx ends, and then waits for what it has sent.
func (l *load) run(ctx context.Context, rng *rand.Rand) {
	var sent sync.WaitGroup
	defer sent.Wait()
	next := time.Now()
	for n := 0; ; n++ {
		next = next.Add(time.Duration(rng.ExpFloat64() / l.rate * float64(time.Second)))
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
		}
		id := fmt.Sprintf("%s-%d", l.name, n)
		sent.Go(func() { l.one(id) })
	}
}

// end stops sending and waits for what is on its way.
func (l *load) end() {
	l.stop()
	l.work.Wait()
}

func (l *load) one(id string) {
	prompt := promptOf(id, promptTokens)
	r := result{id: id, arrived: time.Now()}
	l.mu.Lock()
	l.open[id] = r.arrived
	l.mu.Unlock()
	text := l.rig.ask(&r, prompt)
	r.ended = time.Now()
	if r.whole {
		want, err := l.rig.truth(prompt)
		if r.wrong = err != nil || text != want; err != nil {
			r.why = "the engine to compare with: " + err.Error()
		}
	}
	l.rig.lookUp(&r)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, id)
	l.results = append(l.results, r)
}

// promptOf is a text of about so many tokens that begins like no other.
func promptOf(id string, tokens int) string {
	const words = "the gate and the pipe that feed a turbine at the rate at which it turns; "
	const perToken = 4 // bytes
	return id + " " + strings.Repeat(words, tokens*perToken/len(words))
}

// body is a streamed completion of exactly so many tokens.
func body(model, prompt string, tokens int) string {
	return fmt.Sprintf(`{"model":%q,"prompt":%q,"max_tokens":%d,"ignore_eos":true,"stream":true}`, model, prompt, tokens)
}

// patience is for an answer, beyond which the request has failed.
const patience = 20 * time.Second

// ask sends a request to the gateway, notes in r what came, and returns the text.
func (r *rig) ask(x *result, prompt string) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resp, err := r.post(ctx, r.gate.URL()+"/v1/completions", x.id, body(r.model, prompt, answerTokens))
	if err != nil {
		x.why = err.Error()
		return ""
	}
	defer resp.Body.Close()
	x.status = resp.StatusCode
	if x.status != http.StatusOK {
		raw, _ := io.ReadAll(resp.Body)
		x.why = fmt.Sprintf("%s: %s", resp.Status, raw)
		return ""
	}
	text, err := readStream(resp.Body, func() { x.begun = true })
	if err != nil {
		x.why = err.Error()
		return ""
	}
	x.whole = true
	return text
}

func (r *rig) post(ctx context.Context, url, id, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if id != "" {
		req.Header.Set("X-Request-Id", id)
	}
	return r.client.Do(req)
}

// chunk is what is read of an answer.
type chunk struct {
	Choices []struct {
		Text   string `json:"text"`
		Finish string `json:"finish_reason"`
	} `json:"choices"`
	Error json.RawMessage `json:"error"`
}

// readStream reads a streamed answer to its end and returns its text. begun is
// called when the first of it has come.
func readStream(body io.Reader, begun func()) (string, error) {
	var text strings.Builder
	finished := false
	lines := newLines(body)
	for {
		line, err := lines.next()
		if err != nil {
			return "", fmt.Errorf("the stream broke off: %w", err)
		}
		data, ok := strings.CutPrefix(line, "data: ")
		switch {
		case !ok:
			continue
		case data == "[DONE]" && finished:
			_, _ = io.Copy(io.Discard, lines.r) // to its end, so that the connection is used again
			return text.String(), nil
		case data == "[DONE]":
			return "", errors.New("the stream ended without a reason")
		}
		var c chunk
		if err := json.Unmarshal([]byte(data), &c); err != nil {
			return "", fmt.Errorf("%q: %w", data, err)
		}
		if c.Error != nil {
			return "", fmt.Errorf("error in the stream: %s", c.Error)
		}
		for i := range c.Choices {
			if c.Choices[i].Text != "" && text.Len() == 0 {
				begun()
			}
			text.WriteString(c.Choices[i].Text)
			finished = finished || c.Choices[i].Finish != ""
		}
	}
}

// truth is what the model says, by an engine that the gateway does not know.
func (r *rig) truth(prompt string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resp, err := r.post(ctx, r.reference.URL()+"/v1/completions", "", body(r.model, prompt, answerTokens))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	return readStream(resp.Body, func() {})
}

// The record of a request is written after its answer.
const (
	lookUps     = 40
	lookUpEvery = 5 * time.Millisecond
)

// lookUp adds to x what the gateway has recorded. Where it has nothing, x was not
// served as it should be.
func (r *rig) lookUp(x *result) {
	for range lookUps {
		var found obs.Record
		if r.read(r.gate.AdminURL()+"/api/decisions/"+x.id, &found) == nil && len(found.Attempts) > 0 {
			last := found.Attempts[len(found.Attempts)-1]
			x.attempts, x.prefill, x.decode = len(found.Attempts), last.Prefill, last.Chosen
			return
		}
		time.Sleep(lookUpEvery)
	}
}

// read gets a JSON document.
func (r *rig) read(url string, into any) error {
	resp, err := r.client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// mark is a place among the results, from which on they are looked at.
func (l *load) mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.results)
}

// quiet is how long nothing may have gone wrong for the service to have recovered,
// and stuck is how old a request may be that has not ended.
const (
	quiet = 300 * time.Millisecond
	stuck = 500 * time.Millisecond
)

// recovered returns how long after t0 service was as before: every request since
// has been served once, by two engines, and the endpoints that the fault befell have
// served some, as they are since alive.
func (l *load) recovered(from int, t0, alive time.Time, befell []string) (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, last := time.Now(), t0
	for _, arrived := range l.open {
		if now.Sub(arrived) > stuck {
			return 0, false
		}
	}
	for i := range l.results[from:] {
		if x := &l.results[from+i]; x.ended.After(last) && !x.normal() {
			last = x.ended
		}
	}
	again := map[string]bool{"": false}
	for i := range l.results[from:] {
		x := &l.results[from+i]
		if !x.normal() || x.arrived.Before(alive) {
			continue
		}
		for _, e := range append([]string{""}, befell...) {
			if !again[e] && (e == "" || x.via(e)) {
				again[e] = true
				if e != "" && x.ended.After(last) {
					last = x.ended
				}
			}
		}
	}
	for _, e := range befell {
		if !again[e] {
			return 0, false
		}
	}
	return last.Sub(t0), again[""] && now.Sub(last) >= quiet
}
