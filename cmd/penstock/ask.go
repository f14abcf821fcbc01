package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/obs"
)

const defaultAdmin = "http://127.0.0.1:9090"

// askFlags say which running gateway to ask.
type askFlags struct {
	Admin      string        `default:"http://127.0.0.1:9090" help:"Admin address of the gateway."`
	AdminToken string        `placeholder:"TOKEN" help:"Its bearer token."`
	JSON       bool          `name:"json" help:"Print the gateway's JSON answer."`
	Timeout    time.Duration `default:"10s" help:"Give up after so long."`
}

// maxReply is the largest answer read from an admin port.
const maxReply = 64 << 20

// get asks the admin port and returns the raw answer.
func (a askFlags) get(ctx context.Context, path string) ([]byte, error) {
	return a.do(ctx, http.MethodGet, path, http.NoBody)
}

func (a askFlags) do(ctx context.Context, method, path string, body io.Reader) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(a.Admin, "/")+path, body)
	if err != nil {
		return nil, fmt.Errorf("--admin: %w", err)
	}
	if a.AdminToken != "" {
		req.Header.Set("Authorization", "Bearer "+a.AdminToken)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no gateway answers at %s (is one running? see --admin): %w", a.Admin, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, fmt.Errorf("read from %s: %w", a.Admin, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(raw, &e) == nil && e.Error != "" {
			return nil, errors.New(e.Error)
		}
		return nil, fmt.Errorf("%s answered %s", a.Admin, resp.Status)
	}
	return raw, nil
}

type explainCmd struct {
	Request string `arg:"" help:"Request id, as in the X-Request-Id header of the answer; or \"last\"."`
	askFlags
}

// Help shows examples.
func (explainCmd) Help() string {
	return `Examples:
  penstock explain hello
  penstock explain last --json
  penstock explain req-1a2b3c --admin http://127.0.0.1:9091`
}

// Run prints one record.
func (c *explainCmd) Run(ctx context.Context, s streams) error {
	path := "/api/decisions/" + url.PathEscape(c.Request)
	if c.Request == "last" {
		path = "/api/decisions?limit=1"
	}
	raw, err := c.get(ctx, path)
	if err != nil {
		return err
	}
	if c.JSON {
		_, err := s.Out.Write(raw)
		return err
	}
	var rec obs.Record
	if c.Request == "last" {
		var list struct {
			Decisions []obs.Record `json:"decisions"`
		}
		if err := json.Unmarshal(raw, &list); err != nil {
			return fmt.Errorf("answer of %s: %w", c.Admin, err)
		}
		if len(list.Decisions) == 0 {
			return errors.New("no request has ended yet")
		}
		rec = list.Decisions[0]
	} else if err := json.Unmarshal(raw, &rec); err != nil {
		return fmt.Errorf("answer of %s: %w", c.Admin, err)
	}
	explain(s.Out, &rec)
	return nil
}

// explain tells a record in words and a table per attempt.
func explain(w io.Writer, r *obs.Record) {
	kind := "whole"
	if r.Stream {
		kind = "streamed"
	}
	fmt.Fprintf(w, "request %s: %s (%s) for %q, about %d prompt tokens, ended %s\n",
		r.Request, r.Path, kind, r.Model, r.Prompt, r.At.Local().Format("15:04:05.000"))
	if t := r.Terms; t != nil {
		fmt.Fprintf(w, "for tenant %q, objective %q: priority %d, first token within %s, then one per %s\n", t.Tenant, t.Objective, t.Priority, promised(t.TTFTMs), promised(t.TPOTMs))
	}
	if len(r.Attempts) == 0 {
		fmt.Fprintln(w, "\nIt was never placed.")
	}
	for i := range r.Attempts {
		explainAttempt(w, &r.Attempts[i])
	}
	o := &r.Outcome
	fmt.Fprintf(w, "\noutcome: status %d", o.Status)
	if o.Endpoint != "" {
		fmt.Fprintf(w, " from %s", o.Endpoint)
	}
	fmt.Fprintf(w, "; queued %.1f ms", o.QueueMs)
	if o.TTFTMs > 0 {
		fmt.Fprintf(w, ", first token after %.1f ms", o.TTFTMs)
	}
	if o.ITLMs > 0 {
		fmt.Fprintf(w, ", then one per %.1f ms (median)", o.ITLMs)
	}
	fmt.Fprintf(w, ", %.1f ms in all\n", o.TotalMs)
	prompt, cached := "prompt not reported by the engine", "not reported"
	if o.CachedTokens != nil {
		cached = fmt.Sprint(*o.CachedTokens)
	}
	if o.PromptTokens > 0 {
		prompt = fmt.Sprintf("%d prompt (cached: %s)", o.PromptTokens, cached)
	}
	fmt.Fprintf(w, "tokens: %s, %d out; retries: %d\n", prompt, o.OutputTokens, o.Retries)
	if how := r.Tokens; how != "" {
		fmt.Fprintf(w, "its blocks were known by their tokens: %s\n", how)
	}
	if m := o.Moved; m != nil {
		took := "nothing tells how long that took"
		if m.TookMs > 0 {
			took = fmt.Sprintf("%.1f ms", m.TookMs)
		}
		fmt.Fprintf(w, "KV of %d tokens was moved: %s, predicted %.1f ms\n", m.Tokens, took, m.ExpectedMs)
	}
	for label, v := range map[string]string{"refused": o.Refusal, "failed": o.Failure} {
		if v != "" {
			fmt.Fprintf(w, "%s: %s\n", label, v)
		}
	}
	if o.Error != "" {
		fmt.Fprintf(w, "error: %s\n", o.Error)
	}
}

// promised is a time of an SLO in words.
func promised(ms float64) string {
	if ms == 0 {
		return "any time"
	}
	return fmt.Sprintf("%g ms", ms)
}

func explainAttempt(w io.Writer, a *obs.Attempt) {
	fmt.Fprintf(w, "\nattempt %d: %s chose %s", a.Attempt, a.Policy, a.Chosen)
	switch {
	case a.RunnerUp == "":
		fmt.Fprint(w, ", the only candidate")
	case a.Margin == 0:
		fmt.Fprintf(w, " over %s: a tie, broken at random", a.RunnerUp)
	default:
		fmt.Fprintf(w, " over %s, by %.6g", a.RunnerUp, a.Margin)
	}
	fmt.Fprintf(w, "; after %.1f ms in the queue\n", a.QueuedMs)
	switch a.Shadow {
	case "":
	case a.Chosen:
		fmt.Fprintln(w, "the shadow policy would have chosen the same")
	default:
		fmt.Fprintf(w, "the shadow policy would have chosen %s\n", a.Shadow)
	}
	for i, name := range a.Encoders {
		fmt.Fprintf(w, "image %d was to be encoded by %s\n", i+1, cmp.Or(name, "whoever computes the prompt"))
	}
	explainPlans(w, a.Plans)
	if b := a.Barred; b != nil {
		fmt.Fprintf(w, "pairs that cannot exchange KV: %d; %s to %s: %s\n", b.Pairs, b.Prefill, b.Decode, cmp.Or(b.Why, "no longer known why"))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "endpoint\tverdict\tscore\tcached\tby\tbacklog\tin flight\tpredicted TTFT\tTPOT\tgauges' age\t")
	for _, c := range a.Candidates {
		verdict := c.Verdict
		if c.Adapter != "" {
			verdict += ", adapter " + c.Adapter
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t\n", c.Endpoint, verdict, number(c.Score, "%.6g", "-"), cachedTokens(&c), cmp.Or(c.Source, "-"), c.Backlog, c.InFlight,
			predicted(c.TTFTMs, c.TTFTSpread), predicted(c.TPOTMs, c.TPOTSpread), number(c.SampleAgeMs, "%.0f ms", "never read"))
	}
	t.Flush()
	if len(a.Counts) > 1 || total(a.Counts) > len(a.Candidates) {
		fmt.Fprintf(w, "of %d endpoints: %s\n", total(a.Counts), countsText(a.Counts))
	}
}

// explainPlans tells the kinds of plans that were compared.
func explainPlans(w io.Writer, plans []obs.Plan) {
	for _, p := range plans {
		what := "whole on " + p.Endpoint
		if p.Prefill != "" {
			what = fmt.Sprintf("prompt on %s, answer on %s", p.Prefill, p.Endpoint)
		}
		if p.Source != "" {
			what = fmt.Sprintf("fetched from %s, then whole on %s", p.Source, p.Endpoint)
		}
		moved := ""
		if p.MoveMs > 0 {
			moved = fmt.Sprintf(", of which %.1f ms to move its KV", p.MoveMs)
		}
		taken := ""
		if p.Taken {
			taken = "  <- taken"
		}
		fmt.Fprintf(w, "  %s: first token after %.1f ms%s; costs %.3f s in all, its own and others'%s\n", what, p.TTFTMs, moved, p.Cost, taken)
	}
}

// cachedTokens prints what of a prompt an endpoint has, and where it is not on
// the GPU.
func cachedTokens(c *obs.Candidate) string {
	var text strings.Builder
	text.WriteString(strconv.Itoa(c.Matched))
	for _, t := range []struct {
		name string
		n    int
	}{{"cpu", c.CPU}, {"disk", c.Disk}, {"shared", c.Shared}} {
		if t.n > 0 {
			fmt.Fprintf(&text, ", %d on %s", t.n, t.name)
		}
	}
	if c.FetchMs > 0 {
		fmt.Fprintf(&text, " (%.0f ms)", c.FetchMs)
	}
	return text.String()
}

// countsText writes how many there are of each, by name.
func countsText[N int | uint64](counts map[string]N) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		list = append(list, fmt.Sprintf("%d %s", counts[name], name))
	}
	return cmp.Or(strings.Join(list, ", "), "none")
}

func total(counts map[string]int) int {
	n := 0
	for _, c := range counts {
		n += c
	}
	return n
}

// predicted prints a prediction and how far measured times spread about it.
func predicted(ms *float64, spread float64) string {
	if ms == nil {
		return "unknown"
	}
	return fmt.Sprintf("%.1f ms ±%.0f %%", *ms, 100*spread)
}

func number(v *float64, format, otherwise string) string {
	if v == nil {
		return otherwise
	}
	return fmt.Sprintf(format, *v)
}

type statusCmd struct{ askFlags }

// Run prints the pools of a running gateway.
func (c *statusCmd) Run(ctx context.Context, s streams) error {
	raw, err := c.get(ctx, "/api/status")
	if err != nil {
		return err
	}
	if c.JSON {
		_, err := s.Out.Write(raw)
		return err
	}
	var st admin.Status
	if err := json.Unmarshal(raw, &st); err != nil {
		return fmt.Errorf("answer of %s: %w", c.Admin, err)
	}
	ready := "ready"
	if !st.Ready {
		ready = "not ready"
	}
	fmt.Fprintf(s.Out, "penstock %s, up %v, %s\n", st.Version, time.Since(st.Started).Round(time.Second), ready)
	for _, p := range st.Pools {
		y := p.Tally
		fmt.Fprintf(s.Out, "\npool %s (%s), policy %s\n%d requests: %d done, %d in flight, %d queued, %d failed, %d cancelled, %d shed, %d expired, %d retries\n",
			p.Name, strings.Join(p.Models, ", "), p.Policy, y.Arrived, y.Done, y.InFlight, y.Queued, y.Failed, y.Cancelled, y.Shed, y.Expired, y.Retried)
		t := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "endpoint\thealth\tin flight\tothers'\tbacklog\tactive\tcached\tkv used\tgauges' age\tattempts\tfailed\t")
		for _, e := range p.Endpoints {
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%d\t%d\t\n", e.Name, e.Health, e.InFlight, e.External, e.Backlog, e.Active, e.Cached,
				number(e.KVUsage, "%.2f", "?"), number(e.SampleAgeMs, "%.0f ms", "never"), e.Attempts, e.FailedCount)
		}
		t.Flush()
		speeds(s.Out, p.Endpoints)
	}
	return nil
}

// speeds prints what is believed of the endpoints' step times, and names those
// that are slow.
func speeds(w io.Writer, endpoints []admin.EndpointStatus) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := "\nspeed\tstep\tper sequence\tper 1k context\tper 1k prompt\tlearnt from\tbeside equals\tTTFT error\tTPOT error\tsaturation\t"
	const k = 1000
	for _, e := range endpoints {
		v := e.Speed
		if v == nil {
			continue
		}
		beside := "-"
		if v.Factor > 0 {
			beside = fmt.Sprintf("%.2f±%.2f", v.Factor, v.FactorError)
		}
		if head != "" {
			fmt.Fprintln(t, head)
			head = ""
		}
		fmt.Fprintf(t, "%s\t%.1f ms\t%.3f ms\t%.3f ms\t%.1f ms\t%d\t%s\t%s\t%s\t%.2f %s\t\n", e.Name, v.BaseMs, v.PerSeqMs, v.PerKVMs*k, v.PerPromptMs*k, v.Lessons, beside,
			percent(v.TTFTError), percent(v.TPOTError), v.Saturation, v.Regime)
	}
	t.Flush()
	for _, e := range endpoints {
		if v := e.Speed; v != nil && v.Slow {
			fmt.Fprintf(w, "%s is slow: it takes %.0f %% longer than its equals (±%.0f %%)\n", e.Name, 100*(v.Factor-1), 100*v.FactorError)
		}
	}
}

// percent prints a share that may be unknown.
func percent(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100**v)
}
