package enginesim

import (
	"flag"
	"maps"
	"math"
	"slices"
	"testing"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

var fit = flag.Bool("fit", false, "fit the efficiencies to the measured points again, print them, and leave out one family of models after the other")

// steady predicts the TPOT of p, and the TTFT of a request that finds nobody
// waiting, in ms. In a closed loop each step decodes about as many sequences as
// there are clients, and every output tokens one of them is replaced, whose
// prompt delays the others by the chunks it takes.
func steady(e *efficiency, p *point) (tpot, ttft float64) {
	const budget = 8192
	r := e.roofline(p.serving)
	step := func(b Batch) float64 { return r.seconds(b.share(p.serving.DP)) }
	in, out := float64(p.input), float64(p.output)
	fits := max(float64(p.serving.KVTokens())/(in+0.7*out), 1)
	n := min(p.concurrency, fits, 1024)
	chunks := ceilDiv(p.input, budget)
	share := 1.0 // of its time that a client spends decoding
	for range 4 {
		decodes := Batch{Decodes: max(int(math.Round(n*share)), 1)}
		decodes.Context = fleet.Tokens(float64(decodes.Decodes) * (in + out/2))
		plain := step(decodes)
		prefill, x := 0.0, 0
		for range chunks {
			b := decodes
			if n < 1.5 {
				b = Batch{}
			}
			c := min(ceilDiv(p.input, chunks), p.input-x)
			b.addChunk(c, x)
			prefill += step(b)
			x += c
		}
		delay := (prefill - float64(chunks)*plain) * (n - 1) / n * float64(decodes.Decodes) / out
		if n < 1.5 {
			delay = 0
		}
		if p.waves {
			delay /= 2 // of those prompts that come with one's own, half were before it
		}
		tpot, ttft = plain+max(delay, 0), prefill
		if n >= 1.5 {
			ttft += plain / 2
		}
		share = out * tpot / (ttft + out*tpot)
	}
	return 1e3 * tpot, 1e3 * ttft
}

// front is the time in ms, by which a server's first token comes later than its
// engine's: HTTP, tokens from text, text from tokens.
const front = 8

// errors returns the absolute relative errors of TPOT over points, as the
// median of each group, and those of TTFT where it is that of a prompt.
func errorsOf(e *efficiency, points []point) (tpot, ttft map[string]float64) {
	byGroup, byGroupTTFT := map[string][]float64{}, map[string][]float64{}
	for i := range points {
		p := &points[i]
		got, first := steady(e, p)
		byGroup[p.group] = append(byGroup[p.group], math.Abs(got/p.tpot-1))
		if p.alone {
			byGroupTTFT[p.group] = append(byGroupTTFT[p.group], math.Abs((first+front)/p.ttft-1))
		}
	}
	return medians(byGroup), medians(byGroupTTFT)
}

func medians(by map[string][]float64) map[string]float64 {
	m := make(map[string]float64, len(by))
	for k, v := range by {
		m[k] = median(v)
	}
	return m
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func TestPhysicsAgainstMeasuredPoints(t *testing.T) {
	points, left := measured(t)
	for _, why := range slices.Sorted(maps.Keys(left)) {
		t.Logf("left out %4d rows: %s", left[why], why)
	}
	e := fitted
	if *fit {
		e = fitTo(points, fitted, 60)
		t.Logf("fitted: %+v", e)
		for _, f := range families(points) {
			in, out := split(points, f)
			left := fitTo(in, fitted, 30)
			without, _ := errorsOf(&left, out)
			with, _ := errorsOf(&e, out)
			t.Logf("%-18s median TPOT error %5.1f %%, fitted without it %5.1f %%", f,
				100*median(slices.Collect(maps.Values(with))), 100*median(slices.Collect(maps.Values(without))))
		}
	}
	tpot, ttft := errorsOf(&e, points)
	signed := map[string][]float64{}
	by := map[string]map[string]float64{}
	for i := range points {
		p := &points[i]
		got, _ := steady(&e, p)
		signed[p.group] = append(signed[p.group], got/p.tpot-1)
		for _, class := range []string{"family " + p.family, "engine " + p.engine, "precision " + p.precision, "accelerator " + p.gpu} {
			if by[class] == nil {
				by[class] = map[string]float64{}
			}
			by[class][p.group] = tpot[p.group]
		}
	}
	for _, g := range slices.Sorted(maps.Keys(tpot)) {
		t.Logf("%5.1f %% (bias %+4.0f %%) of %3d points: %s", 100*tpot[g], 100*median(signed[g]), len(signed[g]), g)
	}
	for _, class := range slices.Sorted(maps.Keys(by)) {
		t.Logf("%5.1f %% median over %2d groups: %s", 100*median(slices.Collect(maps.Values(by[class]))), len(by[class]), class)
	}
	got := median(slices.Collect(maps.Values(tpot)))
	t.Logf("%5.1f %% median TPOT error over %d groups of %d points; TTFT alone %.1f %% over %d groups",
		100*got, len(tpot), len(points), 100*median(slices.Collect(maps.Values(ttft))), len(ttft))
	if got > 0.12 {
		t.Errorf("median TPOT error over groups is %.1f %%, want at most 12 %%", 100*got)
	}
	for class, limit := range map[string]float64{
		"family Llama-3.1-8B-Instruct": 0.12, "family Llama-3.1-70B-Instruct": 0.08, "family Qwen3-32B": 0.08, "family MiniMax-M2.5": 0.15,
		"family gpt-oss-120b": 0.22, "family DeepSeek-V3/R1": 0.35, "engine vllm": 0.12, "engine sglang": 0.15, "engine trtllm": 0.20,
	} {
		if m := median(slices.Collect(maps.Values(by[class]))); !(m <= limit) {
			t.Errorf("median TPOT error over groups of %s is %.1f %%, want at most %.0f %%", class, 100*m, 100*limit)
		}
	}
}

func families(points []point) []string {
	seen := map[string]bool{}
	for i := range points {
		seen[points[i].family] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func split(points []point, family string) (in, out []point) {
	for _, p := range points {
		if p.family == family {
			out = append(out, p)
		} else {
			in = append(in, p)
		}
	}
	return in, out
}

// terms are the numbers of e that are fitted, and which of them are shares of a
// peak.
func terms(e *efficiency) (values []*float64, shares int) {
	values = []*float64{&e.weights, &e.experts, &e.kv, &e.linear16, &e.linear8, &e.linear4, &e.expert, &e.attention, &e.latent, &e.link}
	shares = len(values)
	for _, o := range []*overheads{&e.vllm, &e.sglang, &e.trtllm} {
		values = append(values, &o.step, &o.layer, &o.moe, &o.sequence)
	}
	return append(values, &e.hop, &e.imbalance, &e.tile), shares
}

// loss is the sum over points of |log(predicted/measured)|, held back at 0.7 so
// that mislabelled rows do not rule, every group of five or more points counting
// the same; and a little for what moves away from where it was without need.
func loss(e, start *efficiency, points []point, weight map[string]float64) float64 {
	sum := 0.0
	for i := range points {
		p := &points[i]
		tpot, ttft := steady(e, p)
		sum += weight[p.group] * min(math.Abs(math.Log(tpot/p.tpot)), 0.7)
		if p.alone {
			sum += weight[p.group] * 0.5 * min(math.Abs(math.Log((ttft+front)/p.ttft)), 0.7)
		}
	}
	values, _ := terms(e)
	begun, _ := terms(start)
	for i := range values {
		l := math.Log(*values[i] / *begun[i])
		sum += 0.02 * l * l
	}
	return sum
}

// fitTo descends coordinate by coordinate, in the logarithm.
func fitTo(points []point, start efficiency, rounds int) efficiency {
	weight := map[string]float64{}
	for i := range points {
		weight[points[i].group]++
	}
	for g, n := range weight {
		weight[g] = 1 / max(n, 5)
	}
	e := start
	best := loss(&e, &start, points, weight)
	values, shares := terms(&e)
	size := make([]float64, len(values))
	for i := range size {
		size[i] = 0.3
	}
	r := stat.NewRand(1, "fit")
	for range rounds {
		for _, i := range r.Perm(len(values)) {
			was, better := *values[i], false
			for _, sign := range []float64{1, -1} {
				*values[i] = was * math.Exp(sign*size[i])
				if i < shares {
					*values[i] = min(*values[i], 0.9)
				}
				if l := loss(&e, &start, points, weight); l < best {
					best, better = l, true
					break
				}
				*values[i] = was
			}
			if better {
				size[i] = min(1.5*size[i], 0.5)
			} else {
				size[i] = max(0.6*size[i], 0.003)
			}
		}
	}
	return e
}
