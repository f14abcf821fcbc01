package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/obs"
)

// topCmd watches a gateway.
type topCmd struct {
	askFlags
	Pool  string        `placeholder:"NAME" help:"Only this pool."`
	Every time.Duration `default:"1s" help:"Time between two looks."`
	Once  bool          `help:"Look once."`
}

// Help shows examples.
func (topCmd) Help() string {
	return `Shows, of every endpoint, its role and what it leans to, requests in flight and
waiting, KV in use, and the median time to first token and per output token of
the latest requests it answered; and the KV moved between endpoints.

Examples:
  penstock top                        until Ctrl-C
  penstock top --pool llama --every 5s
  penstock top --once                 one look, for scripts and notes
  penstock top --once --json | jq '.transfers.pairs'`
}

// topView is one look at a gateway: the answers of its admin port as they came.
type topView struct {
	Status    admin.Status          `json:"status"`
	Transfers *admin.TransferStatus `json:"transfers"` // null where nobody keeps account
	Latest    []obs.Record          `json:"-"`
}

// latest is how many requests medians are taken of.
const latest = 300

// Run prints a table again and again.
func (c *topCmd) Run(ctx context.Context, s streams) error {
	if c.Every < 100*time.Millisecond {
		return fmt.Errorf("--every must be at least 100ms, is %v", c.Every)
	}
	wipe := !c.Once && !c.JSON && isTerminal(s.Out)
	tick := time.NewTicker(c.Every)
	defer tick.Stop()
	for {
		v, err := c.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := c.show(s.Out, v, wipe); err != nil || c.Once {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// isTerminal reports whether a writer is one, where it is a file at all.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// look asks the admin port.
func (c *topCmd) look(ctx context.Context) (*topView, error) {
	v := &topView{}
	raw, err := c.get(ctx, "/api/status")
	if err == nil {
		err = json.Unmarshal(raw, &v.Status)
	}
	if err != nil {
		return nil, err
	}
	var list struct {
		Decisions []obs.Record `json:"decisions"`
	}
	if raw, err = c.get(ctx, fmt.Sprintf("/api/decisions?limit=%d", latest)); err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		return nil, err
	}
	v.Latest = list.Decisions
	// A gateway that keeps no account of transfers has all the rest to show.
	if raw, err = c.do(ctx, http.MethodGet, "/api/transfers?tickets=0", http.NoBody); err == nil {
		v.Transfers = &admin.TransferStatus{}
		if err := json.Unmarshal(raw, v.Transfers); err != nil {
			return nil, err
		}
	}
	if c.Pool != "" {
		v.Status.Pools = slices.DeleteFunc(v.Status.Pools, func(p admin.PoolStatus) bool { return p.Name != c.Pool })
		if len(v.Status.Pools) == 0 {
			return nil, fmt.Errorf("there is no pool %q", c.Pool)
		}
	}
	return v, nil
}

// show writes one look, in one go.
func (c *topCmd) show(w io.Writer, v *topView, wipe bool) error {
	var b bytes.Buffer
	switch {
	case c.JSON:
		if err := json.NewEncoder(&b).Encode(v); err != nil {
			return err
		}
	default:
		if wipe {
			b.WriteString("\x1b[H\x1b[2J") // home, and nothing on the screen
		}
		printTop(&b, v, time.Now())
	}
	_, err := w.Write(b.Bytes())
	return err
}

// printTop tells a look as tables.
func printTop(w io.Writer, v *topView, now time.Time) {
	fmt.Fprintf(w, "penstock %s, up %v  %s\n", v.Status.Version, now.Sub(v.Status.Started).Round(time.Second), now.Format("15:04:05"))
	for i := range v.Status.Pools {
		p := &v.Status.Pools[i]
		y := p.Tally
		fmt.Fprintf(w, "\npool %s, policy %s: %d in flight, %d queued, %d done, %d failed; attempts %d whole, %d split\n", p.Name, p.Policy, y.InFlight, y.Queued, y.Done, y.Failed, y.Whole, y.Split)
		times := medians(v.Latest, p.Name)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "endpoint\trole\thealth\tin flight\tothers'\twaiting\tbacklog\tKV used\tTTFT\tTPOT\tKV link\t")
		for k := range p.Endpoints {
			e := &p.Endpoints[k]
			at := times[e.Name]
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\t%d\t%s\t%s\t%s\t%s\t\n", e.Name, roleOf(e), healthOf(e), e.InFlight, e.External, whole(e.Waiting), e.Backlog,
				share(e.KVUsage), at.ttft.text(), at.tpot.text(), linkOf(e))
		}
		t.Flush()
	}
	if v.Transfers != nil {
		printTransfers(w, v.Transfers)
	}
}

func roleOf(e *admin.EndpointStatus) string {
	switch {
	case e.Turning != nil:
		return e.Role + " > " + e.Turning.To
	case e.Lean != "":
		return e.Role + ", " + e.Lean
	}
	return e.Role
}

func healthOf(e *admin.EndpointStatus) string {
	if e.Draining {
		return e.Health + ", draining"
	}
	return e.Health
}

func whole(n *int) string {
	if n == nil {
		return "?"
	}
	return fmt.Sprint(*n)
}

func share(v *float64) string {
	if v == nil {
		return "?"
	}
	return fmt.Sprintf("%.0f %%", 100**v)
}

func linkOf(e *admin.EndpointStatus) string {
	if e.Wire == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f ms + %.1f us/token", e.Wire.LatencyMs+e.Wire.QueueMs, e.Wire.PerTokenUs)
}

// sample are times in milliseconds.
type sample []float64

// text is their median.
func (s sample) text() string {
	if len(s) == 0 {
		return "-"
	}
	slices.Sort(s)
	return fmt.Sprintf("%.0f ms", s[len(s)/2])
}

type endpointTimes struct{ ttft, tpot sample }

// medians gathers the times of the latest requests by who answered them.
func medians(list []obs.Record, pool string) map[string]endpointTimes {
	by := map[string]endpointTimes{}
	for i := range list {
		r := &list[i]
		if o := &r.Outcome; r.Pool == pool && o.Endpoint != "" && o.TTFTMs > 0 {
			t := by[o.Endpoint]
			t.ttft = append(t.ttft, o.TTFTMs-o.QueueMs)
			if n := o.OutputTokens; n > 1 && o.TotalMs > o.TTFTMs {
				t.tpot = append(t.tpot, (o.TotalMs-o.TTFTMs)/float64(n-1))
			}
			by[o.Endpoint] = t
		}
	}
	return by
}

// printTransfers tells of the KV that was moved.
func printTransfers(w io.Writer, s *admin.TransferStatus) {
	barred := 0
	for _, p := range s.Pools {
		barred += len(p.Barred)
	}
	if len(s.Pairs) == 0 && barred == 0 {
		return
	}
	fmt.Fprint(w, "\ntransfers of KV\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "from\tto\tin flight\tdone\tfailed\taborted\texpired\ttokens\tbytes\ttook (mean, p95)\tpredicted\tlink\t")
	for _, p := range s.Pairs {
		var failed uint64
		for _, n := range p.Failed {
			failed += n
		}
		link := "-"
		if l := p.Link; l != nil {
			link = fmt.Sprintf("%.0f ms + %s/s", l.LatencyMs, size(l.BytesPerSecond))
		}
		took := "-"
		if p.Took.Count > 0 {
			took = fmt.Sprintf("%.0f, %.0f ms", p.Took.MeanMs, p.Took.P95Ms)
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t\n", p.Source, p.Consumer, p.InFlight, p.Done, failed, p.Aborted, p.Expired, p.Tokens,
			size(float64(p.Bytes)), took, measured(p.Expected.MeanMs, "%.0f ms"), link)
	}
	t.Flush()
	for _, p := range s.Pools {
		for _, b := range p.Barred {
			fmt.Fprintf(w, "pool %s: %s cannot hand KV over to %s: %s\n", p.Pool, b.Prefill, b.Decode, b.Why)
		}
	}
}

// measured writes a time in ms, or - for one that nobody knows.
func measured(ms float64, format string) string {
	if ms == 0 {
		return "-"
	}
	return fmt.Sprintf(format, ms)
}

// size writes a number of bytes for people.
func size(n float64) string {
	const step = 1000
	for _, unit := range [...]string{"B", "kB", "MB", "GB"} {
		if n < step {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", n), ".0") + " " + unit
		}
		n /= step
	}
	return fmt.Sprintf("%.1f TB", n)
}

// transfersCmd is about the KV that engines hand over.
type transfersCmd struct {
	List  transfersListCmd  `cmd:"" default:"withargs" help:"What has come of the transfers between engines, and the latest of them."`
	Abort transfersAbortCmd `cmd:"" help:"Give a transfer up; its request is served elsewhere."`
}

type transfersListCmd struct {
	askFlags
	Tickets int `default:"20" help:"Show so many of the latest."`
}

// Help shows examples.
func (transfersListCmd) Help() string {
	return `Examples:
  penstock transfers
  penstock transfers --tickets 100 --json
  penstock transfers abort chat-7.1 --reason "stuck"`
}

// Run prints pairs, engines and tickets.
func (c *transfersListCmd) Run(ctx context.Context, s streams) error {
	var v admin.TransferStatus
	if ok, err := c.ask(ctx, s, http.MethodGet, fmt.Sprintf("/api/transfers?tickets=%d", c.Tickets), nil, &v); !ok {
		return err
	}
	fmt.Fprintf(s.Out, "engines register at %s\n\n", cmp.Or(v.URL, "no port: transfers are known to the gateway alone"))
	t := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "INSTANCE\tENDPOINTS\tROLE\tCONNECTOR\tDOMAIN\tREGISTERED")
	for _, i := range v.Instances {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%v\n", i.ID, cmp.Or(strings.Join(i.Endpoints, ", "), "none"), i.Role, i.Connector, cmp.Or(i.Domain, "-"), i.Registered)
	}
	t.Flush()
	printTransfers(s.Out, &v)
	if len(v.Tickets) > 0 {
		fmt.Fprintln(t, "\nTICKET\tFROM\tTO\tSTAGE\tTOKENS\tBYTES\tTOOK\tPREDICTED\tREASON")
	}
	for _, k := range v.Tickets {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", k.ID, k.Source, k.Consumer, k.Stage, k.Tokens, size(float64(k.Bytes)),
			measured(k.TookMs, "%.1f ms"), measured(k.ExpectedMs, "%.1f ms"), k.Reason)
	}
	return t.Flush()
}

type transfersAbortCmd struct {
	ID     string `arg:"" help:"Of the ticket: the request's id, a dot and the attempt."`
	Reason string `help:"Kept with the ticket."`
	askFlags
}

// Run gives the transfer up.
func (c *transfersAbortCmd) Run(ctx context.Context, s streams) error {
	var answer map[string]string
	if ok, err := c.ask(ctx, s, http.MethodPost, "/api/transfers/"+url.PathEscape(c.ID)+"/abort", map[string]string{"reason": c.Reason}, &answer); !ok {
		return err
	}
	fmt.Fprintf(s.Out, "%s is given up\n", c.ID)
	return nil
}
