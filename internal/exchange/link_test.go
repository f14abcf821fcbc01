package exchange

import (
	"math"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

func seconds(s float64) time.Duration { return time.Duration(s * 1e9) }

func TestLinkBeginsWithThePrior(t *testing.T) {
	l := NewLinks(Prior{Latency: 10 * time.Millisecond, BytesPerSecond: 1e10})
	e := l.Predict("a", "b", Move{Bytes: 1e9})
	if math.Abs(e.Seconds-0.11) > 1e-9 || e.Samples != 0 || e.Error < 0.5 {
		t.Errorf("%+v, want 110 ms, a guess", e)
	}
	if e := l.Predict("a", "b", Move{Bytes: 1e9, Flows: 3, Lanes: 2}); math.Abs(e.Seconds-0.16) > 1e-9 || math.Abs(e.Wait-0.1) > 1e-9 {
		t.Errorf("three flows on two lanes: %+v, want 160 ms of which 100 for others", e)
	}
}

// TestLinkFitsWhatWasMeasured holds the fit to transfers of 8 x RoCE H800 that
// Mooncake has published: its bandwidth rises with size.
func TestLinkFitsWhatWasMeasured(t *testing.T) {
	l := NewLinks(DefaultPrior())
	moves := []struct{ bytes, seconds float64 }{{18.9e6, 0.54e-3}, {151e6, 1.5e-3}, {4.83e9, 31.7e-3}}
	for i := range 60 {
		m := moves[i%3]
		l.Observe(fleet.Time(i), "p", "d", Move{Bytes: int64(m.bytes)}, seconds(m.seconds))
	}
	last := 0.0
	for _, m := range moves {
		e := l.Predict("p", "d", Move{Bytes: int64(m.bytes)})
		if off := e.Seconds/m.seconds - 1; math.Abs(off) > 0.12 {
			t.Errorf("%.0f MB: %.2f ms, measured %.2f", m.bytes/1e6, e.Seconds*1e3, m.seconds*1e3)
		}
		if rate := m.bytes / e.Seconds; rate <= last {
			t.Errorf("bandwidth does not rise: %.3g after %.3g", rate, last)
		} else {
			last = rate
		}
	}
	if s := l.List(); len(s) != 1 || s[0].Samples != 60 || s[0].Error > 0.2 {
		t.Errorf("%+v", s)
	}
}

func TestLinkLearnsFromAnyPrior(t *testing.T) {
	for _, factor := range []float64{0.01, 0.1, 1, 10, 100} {
		truth := func(bytes float64) float64 { return 2e-3 + bytes/2.5e10 }
		l := NewLinks(Prior{Latency: seconds(2e-3 * factor), BytesPerSecond: 2.5e10 / factor})
		r := stat.NewRand(1, "link")
		for i := range 40 {
			bytes := math.Exp(math.Log(1e6) + r.Float64()*math.Log(1e4))
			l.Observe(fleet.Time(i), "p", "d", Move{Bytes: int64(bytes)}, seconds(truth(bytes)*r.LogNormal(1, 0.1)))
		}
		for _, bytes := range []float64{1e6, 1e8, 5e9} {
			if e := l.Predict("p", "d", Move{Bytes: int64(bytes)}); math.Abs(math.Log(e.Seconds/truth(bytes))) > 0.25 {
				t.Errorf("prior off %v times, %.0g bytes: %.4g s, want %.4g", factor, bytes, e.Seconds, truth(bytes))
			}
		}
	}
}

func TestLinkShrugsOffAnOutlierAndFollowsAChange(t *testing.T) {
	l, at := NewLinks(DefaultPrior()), fleet.Time(0)
	see := func(n int, s float64) float64 {
		for range n {
			at++
			l.Observe(at, "p", "d", Move{Bytes: 1e9}, seconds(s))
		}
		return l.Predict("p", "d", Move{Bytes: 1e9}).Seconds
	}
	if got := see(50, 0.1); math.Abs(got-0.1) > 0.005 {
		t.Fatalf("steady at 100 ms, predicted %v", got)
	}
	if got := see(1, 60); got > 0.12 {
		t.Errorf("one of a minute moved it to %v", got)
	}
	if got := see(60, 0.4); math.Abs(got-0.4) > 0.08 {
		t.Errorf("sixty of 400 ms, predicted %v", got)
	}
}

func TestLinkChargesFlowsAndLanes(t *testing.T) {
	l := NewLinks(DefaultPrior())
	for i := range 50 { // four flows share 10 GB/s on each of two lanes
		l.Observe(fleet.Time(i), "p", "d", Move{Bytes: 1e9, Flows: 4, Lanes: 2}, seconds(0.001+0.2))
	}
	if e := l.Predict("p", "d", Move{Bytes: 1e9, Flows: 1, Lanes: 1}); math.Abs(e.Seconds-0.1) > 0.02 {
		t.Errorf("alone on one lane: %+v, want about 100 ms", e)
	}
}

func TestLinksAreBounded(t *testing.T) {
	l := NewLinks(DefaultPrior())
	for i := range maxLinks + 10 {
		l.Observe(fleet.Time(i), "p", time.Duration(i).String(), Move{Bytes: 1e6}, time.Millisecond)
	}
	if len(l.pairs) != maxLinks {
		t.Errorf("%d links", len(l.pairs))
	}
	if _, there := l.pairs[pair{"p", "0s"}]; there {
		t.Error("the one that has rested longest is still there")
	}
}
