package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"penstock.dev/penstock/internal/admin"
)

func table(w io.Writer, head string) *tabwriter.Writer {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, head)
	return t
}

// printKVPool prints what is known of a pool's caches.
func printKVPool(w io.Writer, p *admin.KVPool) {
	fmt.Fprintf(w, "pool %s: %d different blocks of %d tokens known by events (%.1f MB, at most %d, %d forgotten)\n",
		p.Name, p.Index.Blocks, p.BlockTokens, float64(p.Index.Bytes)/1e6, p.Index.Max, p.Index.Evicted)
	t := table(w, "endpoint\trole\tbelieved\tof\tgpu\tcpu\tdisk\tshared\tblocks\tfeed\tby\tlag\tanswers\toverclaimed\tdrops\t")
	for i := range p.Endpoints {
		e := &p.Endpoints[i]
		feed, drops := "none", uint64(0)
		if f := e.Feed; f != nil {
			feed = f.State
			if e.Whole {
				feed += ", whole"
			}
			for _, n := range f.Dropped {
				drops += n
			}
		}
		by := e.Source
		if e.Demoted {
			by += " (demoted)"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%.0f ms\t%d\t%.1f %%\t%d\t\n", e.Name, e.Role, e.Believed, known(e.Capacity),
			e.GPU, e.CPU, e.Disk, e.Shared, (e.GPU+e.CPU+e.Disk+e.Shared)/max(p.BlockTokens, 1), feed, by, e.LagMs, e.Accuracy.Answers, 100*e.Accuracy.OverShare, drops)
	}
	t.Flush()
	if k := p.Tokens; k != nil {
		fmt.Fprintf(w, "prompts' tokens: %s; not known: %s; circuit %s\n", countsText(k.By), countsText(k.Without), k.Circuit)
	}
	fmt.Fprintln(w)
}

func known(n int) string {
	if n == 0 {
		return "?"
	}
	return strconv.Itoa(n)
}

// printWhere prints who has a prompt.
func printWhere(w io.Writer, v *admin.KVWhere) {
	how := "known by its bytes: what was sent where counts, and events do not"
	if v.ByTokens {
		how = "known by its tokens"
	}
	fmt.Fprintf(w, "%s of %d tokens in pool %s, %s\n", v.Of, v.Tokens, v.Pool, how)
	t := table(w, "endpoint\trole\tcached\tshare\tat\tby\tfetch\t")
	for _, e := range v.Endpoints {
		fmt.Fprintf(t, "%s\t%s\t%d\t%.0f %%\t%s\t%s\t%.1f ms\t\n", e.Endpoint, e.Role, e.Tokens, 100*float64(e.Tokens)/float64(max(v.Tokens, 1)),
			tierText(e.GPU, e.CPU, e.Disk, e.Shared), e.Source, e.FetchMs)
	}
	t.Flush()
}

// printResults prints what came of something at each endpoint; it fails when
// nothing was done anywhere.
func printResults(w io.Writer, v *admin.KVResults) error {
	done := len(v.Results) == 0
	for i := range v.Results {
		r := &v.Results[i]
		done = done || r.Done
		text := "refused"
		if r.Done {
			text = "done"
		}
		if r.Tokens > 0 {
			text += fmt.Sprintf(": %d tokens in %.0f ms", r.Tokens, r.TookMs)
		}
		if r.Cached != nil {
			text += fmt.Sprintf(", %d were there", *r.Cached)
		}
		if r.Before != nil && r.After != nil {
			text += fmt.Sprintf(": %d tokens before, %d now", *r.Before, *r.After)
		}
		if r.Confirmed != nil && *r.Confirmed {
			text += ", as its events say"
		}
		if r.Reason != "" {
			text += "; " + r.Reason
		}
		fmt.Fprintf(w, "%s: %s\n", r.Endpoint, text)
	}
	if !done {
		return exitError(1)
	}
	return nil
}

// printKept prints what is kept.
func printKept(w io.Writer, v *admin.KVKeptList) {
	t := table(w, "id\tpool\tby\ttenant\tsession\ttokens\tcopies\tat\tasked\tleft\tnote\t")
	for i := range v.Kept {
		k := &v.Kept[i]
		left := "stays"
		if k.LeftS != nil {
			left = seconds(*k.LeftS)
		}
		wanted := strconv.Itoa(k.Copies)
		if len(k.Endpoints) > 0 {
			wanted = strings.Join(k.Endpoints, " ")
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s ago\t%s\t%s\t\n", k.ID, k.Pool, k.Source, cmp.Or(k.Tenant, "-"), cmp.Or(k.Session, "-"), k.Tokens,
			wanted, cmp.Or(strings.Join(k.Has, " "), "nobody"), seconds(k.AgeS), left, cmp.Or(k.Error, "-"))
	}
	t.Flush()
	for _, p := range v.Pools {
		fmt.Fprintf(w, "pool %s: %.1f of %.1f MB of text; orders: %s, %d failed, %.1f s of engines' time; refused: %s; dropped: %s\n",
			p.Pool, float64(p.Bytes)/1e6, float64(p.MaxBytes)/1e6, countsText(p.Orders), p.Failed, p.Seconds, countsText(p.Refused), countsText(p.Dropped))
	}
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}

// printQuotas prints what each tenant may have kept, and has.
func printQuotas(w io.Writer, v *admin.KVQuotas) {
	tenants := map[string]bool{}
	for t := range v.Tenants {
		tenants[t] = true
	}
	for t := range v.Used {
		tenants[t] = true
	}
	fmt.Fprintf(w, "pool %s: %d tokens for a tenant that is not named here\n", v.Pool, v.Default)
	t := table(w, "tenant\tquota\tkept\t")
	for _, name := range slices.Sorted(maps.Keys(tenants)) {
		quota, own := v.Tenants[name]
		if !own {
			quota = v.Default
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t\n", cmp.Or(name, "(none)"), quota, v.Used[name])
	}
	t.Flush()
}
