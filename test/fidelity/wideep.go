package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// The published wide-EP run: DeepSeek-R1 on 32 H200, 16 of which prefill and 16
// decode, 2,048 requests at once of 2,000 tokens in and 2,000 out.
const (
	wideClients   = 2048
	wideRanks     = 16 // of each set
	widePrompt    = 2000
	wideAnswer    = 2000
	widePublished = 25_176 // output tok/s, about 1,600 per decoding GPU
	// wideLink is the bytes per second at which KV goes from a prefilling to a
	// decoding rank: one network card of 400 Gbit/s each.
	wideLink = 50e9
)

// wideServing is one of the two sets.
func wideServing() (catalog.Serving, error) {
	m, errModel := catalog.FindModel("deepseek-ai/DeepSeek-R1")
	a, errAccelerator := catalog.FindAccelerator("H200")
	s := catalog.Serving{Shape: m, Accelerator: a, TP: 1, DP: wideRanks, EP: wideRanks, Engine: "vllm"}.Normal()
	return s, errors.Join(errModel, errAccelerator, s.Validate())
}

// wideSet returns a lockstep set.
func wideSet(s catalog.Serving, seed uint64) (*enginesim.Lockstep, error) {
	kv := fleet.Tokens(s.KVTokens() / wideRanks)
	configs := make([]enginesim.Config, wideRanks)
	for i := range configs {
		r := enginesim.NewRoofline(s)
		r.Noise, r.Seed = 0.05, stat.Mix64(seed+uint64(i))
		configs[i] = enginesim.Config{Physics: r, KVTokens: kv, MaxSeqs: 256, BudgetTokens: 8192}
	}
	return enginesim.NewLockstep(configs)
}

// The two sets.
const (
	prefill = iota
	decode
)

// wideRun is a closed loop through two sets: a client's prompt is computed on
// the prefilling rank with fewest requests, its KV moves to the decoding rank
// with fewest, and when its answer has ended it asks again.
type wideRun struct {
	sets   [2]*enginesim.Lockstep // prefill, decode
	open   [2][wideRanks]int      // requests on each rank
	moving []moved                // KV on its way, soonest first
	move   time.Duration          // for which it is
	ended  []fleet.Time           // when answers ended
	last   fleet.ReqID
}

// moved is a request whose KV reaches the decoding set at a time.
type moved struct {
	at fleet.Time
	id fleet.ReqID
}

func newWideRun(s catalog.Serving) (*wideRun, error) {
	w := &wideRun{move: time.Duration(widePrompt * s.Shape.KVBytes(s.KV.Bytes()) / wideLink * 1e9)}
	for i := range w.sets {
		set, err := wideSet(s, uint64(i)<<32)
		if err != nil {
			return nil, err
		}
		w.sets[i] = set
	}
	return w, nil
}

// submit sends a request to the rank of a set that has fewest.
func (w *wideRun) submit(now fleet.Time, set int, r enginesim.Request) error {
	least := 0
	for i, n := range w.open[set] {
		if n < w.open[set][least] {
			least = i
		}
	}
	w.open[set][least]++
	return w.sets[set].Rank(least).Submit(now, r)
}

// ask sends the prompt of a new request.
func (w *wideRun) ask(now fleet.Time) error {
	w.last++
	return w.submit(now, prefill, enginesim.Request{ID: w.last, Prompt: widePrompt, Output: 1})
}

// advance lets a set work until now, takes what happened there, and returns when
// something can happen to it next.
func (w *wideRun) advance(set int, now fleet.Time) (fleet.Time, error) {
	var next fleet.Time
	var out []enginesim.Output
	for i := range wideRanks {
		out, next = w.sets[set].Rank(i).Advance(now, out[:0])
		for _, o := range out {
			if o.Finish == enginesim.NotFinished {
				continue
			}
			w.open[set][i]--
			if set == prefill {
				w.moving = append(w.moving, moved{o.At.Add(w.move), o.Req})
				continue
			}
			w.ended = append(w.ended, o.At)
			if err := w.ask(now); err != nil {
				return 0, err
			}
		}
	}
	return next, nil
}

// run goes on until so many answers have ended.
func (w *wideRun) run(answers int) error {
	// Clients start over the time of about one answer, as in the middle of a long
	// run: else all prefill together and all decode together.
	for i := range wideClients {
		now := fleet.Time(float64(i) / wideClients * 100e9)
		if err := w.until(now, math.MaxInt); err != nil {
			return err
		}
		if err := w.ask(now); err != nil {
			return err
		}
	}
	return w.until(fleet.Never, answers)
}

// until advances both sets to a time, or until so many answers have ended.
func (w *wideRun) until(end fleet.Time, answers int) error {
	now := fleet.Time(0)
	for len(w.ended) < answers {
		next := end
		for _, set := range []int{decode, prefill} { // whose answer ends asks again
			at, err := w.advance(set, now)
			if err != nil {
				return err
			}
			next = min(next, at)
		}
		if len(w.moving) > 0 {
			next = min(next, w.moving[0].at)
		}
		if next >= end {
			return nil
		}
		now = next
		for len(w.moving) > 0 && w.moving[0].at <= now {
			m := w.moving[0]
			w.moving = w.moving[1:]
			// The first token came from the prefilling set; the answer goes on here.
			r := enginesim.Request{ID: m.id, Prompt: widePrompt + 1, Output: wideAnswer - 1, Received: widePrompt}
			if err := w.submit(now, decode, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// wideEP compares two lockstep sets with the published wide-EP run.
func wideEP(w io.Writer) []goal {
	s, err := wideServing()
	if err != nil {
		return []goal{failed("wide EP: " + err.Error())}
	}
	r, err := newWideRun(s)
	if err == nil {
		err = r.run(3 * wideClients)
	}
	if err != nil {
		return []goal{failed("wide EP: " + err.Error())}
	}
	// The first answers of all clients are warm-up.
	n := len(r.ended) - wideClients
	span := r.ended[len(r.ended)-1].Sub(r.ended[wideClients-1]).Seconds()
	output := float64(n) * wideAnswer / span
	steps := r.sets[decode].Rank(0).Stats()
	fmt.Fprintf(w, "  DeepSeek-R1, %d + %d H200, %d clients, %d in, %d out: %.0f output tok/s, %.0f per decoding GPU, decoding steps of %.1f ms; published %d, about 1,600\n",
		wideRanks, wideRanks, wideClients, widePrompt, wideAnswer, output, output/wideRanks, 1e3*steps.Busy.Seconds()/float64(steps.Steps), widePublished)
	return []goal{atMost("wide EP: output tok/s, error", math.Abs(output/widePublished-1), 0.25)}
}
