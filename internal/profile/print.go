package profile

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Print writes the report for people.
func (p *Report) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "combination and artefacts")
	for _, a := range p.Combination {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", a.What, a.Value, a.Source)
	}
	fmt.Fprintln(w, "\nrange")
	for _, b := range p.Range {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", b.What, number(b.Value), b.Source)
	}
	fmt.Fprintln(w, "\ndata points and performance curve")
	p.printPoints(w)
	p.printCurve(w)
	fmt.Fprintf(w, "\nmax KV cache\n  %s tokens (%s)", number(p.MaxKV.Tokens), p.MaxKV.Source)
	c := &p.Concurrency
	if p.MaxKV.Tokens > 0 {
		fmt.Fprintf(w, ": %d sequences of %.0f + %.0f tokens", p.MaxKV.Sequences, c.Input, c.Output)
	}
	fmt.Fprintf(w, "\n\nminimum cycle latency\n  T(1) = %.2f ms", p.MinCycle.Ms)
	if p.MinCycle.Measured > 0 {
		fmt.Fprintf(w, ", measured %.2f ms", p.MinCycle.Measured)
	}
	fmt.Fprintf(w, "\n\nmax concurrency\n  %s sequences of %.0f + %.0f tokens with TTFT within %s, TPOT within %s: %s", number(c.Sequences), c.Input, c.Output, target(c.TTFTMs), target(c.TPOTMs), c.Binds)
	if c.StepMs > 0 {
		fmt.Fprintf(w, ", T = %.2f ms", c.StepMs)
	}
	fmt.Fprintf(w, "\n  %.3g requests/s within the targets for %.0f %% of them: %s at %.0f sequences and %.2f ms per token\n", c.Rate, 100*c.Quantile, c.RateBinds, c.Mean, c.MeanTPOTMs)
	p.printEnd(w)
	return w.Flush()
}

func (p *Report) printPoints(w io.Writer) {
	fmt.Fprintln(w, "  n\tinput\tcontext\tTTFT ms\tprior\tfit\tTPOT ms\tprior\tfit\terror")
	for _, x := range p.Points {
		fmt.Fprintf(w, "  %d\t%.0f\t%.0f\t%s\t%s\t%s\t%s\t%s\t%s\t%+.1f %%\n", x.Streams, x.Input, x.Context,
			ms(x.TTFT), ms(x.PriorTTFT), ms(x.FittedTTFT), ms(x.TPOT), ms(x.PriorTPOT), ms(x.FittedTPOT), 100*x.Error)
	}
	fmt.Fprintln(w, "\n  parameter\tms\t95 % from\tto\tprior")
	for _, x := range p.Parameters {
		kept := ""
		if x.Kept != "" {
			kept = "kept from the prior: " + x.Kept
		}
		fmt.Fprintf(w, "  %s\t%.4g\t%.4g\t%.4g\t%.4g\t%s\n", x.Name, x.Ms, x.Lo, x.Hi, x.Prior, kept)
	}
}

func (p *Report) printCurve(w io.Writer) {
	fmt.Fprintf(w, "\n  T(n) at %.0f + %.0f tokens\tms\t±95 %%\ttokens/s\n", p.Concurrency.Input, p.Concurrency.Output)
	for _, x := range p.Curve {
		fmt.Fprintf(w, "  %d\t%.2f\t%.2f\t%.0f\n", x.Streams, x.Ms, x.Plus, x.TokensPerSec)
	}
}

func (p *Report) printEnd(w io.Writer) {
	if p.Pace != 1 {
		fmt.Fprintf(w, "\nThe engine is %.3g times as slow as the prior has it; the prior was taken at that pace.\n", p.Pace)
	}
	fmt.Fprintf(w, "\n%d probes in %s, predicted error %s: %s\n", len(p.Points), seconds(p.Seconds), percent(p.Error), p.Stopped)
	if c := p.Check; c != nil {
		holds := "holds"
		if !c.Holds {
			holds = "does not hold"
		}
		fmt.Fprintf(w, "The known profile %s here: one check probe is off by %+.1f %%, and may be by %s.\n", holds, 100*c.Error, percent(c.Most))
	}
	for _, n := range p.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
}

// number is a count that may be unknown.
func number(n int) string {
	if n == 0 {
		return "unknown"
	}
	return fmt.Sprint(n)
}

// ms is a time that may be unknown.
func ms(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}

func target(ms float64) string {
	if ms == 0 {
		return "any time"
	}
	return fmt.Sprintf("%.4g ms", ms)
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

func seconds(s float64) string { return fmt.Sprintf("%.1f s", s) }
