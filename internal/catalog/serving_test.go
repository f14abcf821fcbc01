package catalog

import (
	"math"
	"strings"
	"testing"
)

func serving(t *testing.T, model, accelerator string, tp int) Serving {
	t.Helper()
	m, err := FindModel(model)
	if err != nil {
		t.Fatal(err)
	}
	a, err := FindAccelerator(accelerator)
	if err != nil {
		t.Fatal(err)
	}
	return Serving{Shape: m, Accelerator: a, TP: tp}
}

func TestKVCapacity(t *testing.T) {
	// What vLLM reports of Qwen3-32B in 16 bits on two H100.
	if got := serving(t, "qwen3-32b", "h100", 2).KVTokens(); math.Abs(float64(got)-298_000) > 0.02*298_000 {
		t.Errorf("%d tokens of KV, measured are 298000", got)
	}
	// 64 layers of 2 · 8 · 128 elements, two bytes each; half on each of two devices.
	if got := serving(t, "qwen3-32b", "h100", 2).KVBytes(); got != 64*2*8*128*2/2 {
		t.Errorf("%g bytes of KV per token", got)
	}
	// Sixteen devices share eight heads two by two.
	if got := serving(t, "qwen3-32b", "h100", 16).KVBytes(); got != 64*2*128*2 {
		t.Errorf("%g bytes of KV per token on each of 16", got)
	}
	// Latents are whole on every device; data parallel ranks hold different ones.
	r1 := serving(t, "deepseek-r1", "h200", 8)
	if got := r1.KVBytes(); got != 61*576*2 {
		t.Errorf("%g bytes of latents per token", got)
	}
	dp := r1
	dp.TP, dp.DP, dp.EP = 1, 8, 8
	if one, many := r1.KVTokens(), dp.KVTokens(); many < 4*one {
		t.Errorf("8 ranks hold %d tokens, one of 8 devices %d", many, one)
	}
	half := serving(t, "qwen3-32b", "h100", 2)
	half.KV = FP8
	if a, b := half.KVTokens(), serving(t, "qwen3-32b", "h100", 2).KVTokens(); a < 2*b-1 || a > 2*b+1 {
		t.Errorf("%d tokens in 8 bits, %d in 16", a, b)
	}
	// Windows of 128 tokens count for 128 of 4096 only.
	if full, s := serving(t, "gpt-oss-120b", "h100", 2), serving(t, "gpt-oss-120b", "h100", 2); true {
		full.Shape.WindowLayers, full.Shape.Window = 0, 0
		if ratio := float64(s.KVTokens()) / float64(full.KVTokens()); math.Abs(ratio-2/(1+128./4096)) > 0.01 {
			t.Errorf("windows let %.3f times as many tokens in", ratio)
		}
	}
}

func TestServingValidate(t *testing.T) {
	good := serving(t, "qwen3-32b", "h100", 2)
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Serving){
		"tp: -1":                 func(s *Serving) { s.TP = -1 },
		"tp: 3 does not divide":  func(s *Serving) { s.TP = 3 },
		"tp: Qwen/Qwen3-32B":     func(s *Serving) { s.Accelerator, _ = FindAccelerator("l40s"); s.TP = 1 },
		"ep: Qwen/Qwen3-32B has": func(s *Serving) { s.EP = 2 },
		"ep: 64 groups":          func(s *Serving) { s.Shape, _ = FindModel("gpt-oss-20b"); s.EP = 64 },
		"pp: 65 stages":          func(s *Serving) { s.PP = 65 },
		"engine: \"magic\"":      func(s *Serving) { s.Engine = "magic" },
		"accelerator:":           func(s *Serving) { s.Accelerator = Accelerator{} },
		"model:":                 func(s *Serving) { s.Shape = Shape{} },
	} {
		s := good
		change(&s)
		if err := s.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("want an error that begins with %q, got %v", want, err)
		}
	}
	large := serving(t, "llama-3.1-70b", "h100", 1)
	if err := large.Validate(); err == nil {
		t.Error("70B in 16 bits fits on one H100")
	}
	large.Weights, large.Accelerator = FP4, Accelerators()[4]
	if err := large.Validate(); err != nil {
		t.Errorf("70B in 4 bits on a B200: %v", err)
	}
}

func TestParseAccelerators(t *testing.T) {
	list, err := ParseAccelerators([]byte("accelerators:\n- {name: Abacus 9, memoryGB: 48, bandwidthGBps: 900, tflops16: 100}\n- {name: h100, memoryGB: 94, bandwidthGBps: 3900, tflops16: 835}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if a, err := FindIn(list, "abacus-9-pcie"); err == nil {
		t.Errorf("another form of it was taken for it: %+v", a)
	}
	if a, err := FindIn(list, "ACME Abacus-9"); err != nil || a.Memory != 48e9 || a.Bandwidth != 900e9 || a.FLOPs16 != 100e12 || a.Domain != 1 {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := FindIn(list, "H100"); err != nil || a.Memory != 94e9 {
		t.Errorf("the known H100 was not replaced: %+v, %v", a, err)
	}
	if a, err := FindIn(list, "H200"); err != nil || a.Memory != 150.1e9 {
		t.Errorf("the known H200 is gone: %+v, %v", a, err)
	}
	for want, text := range map[string]string{
		"accelerators[0].name: missing":          "accelerators: [{memoryGB: 1, bandwidthGBps: 1, tflops16: 1}]",
		"accelerators[1].memoryGB: -4":           "accelerators: [{name: a, memoryGB: 1, bandwidthGBps: 1, tflops16: 1}, {name: b, memoryGB: -4}]",
		"accelerators[0].bandwidthGBps: missing": "accelerators: [{name: a, memoryGB: 1, tflops16: 1}]",
		"accelerators[0].tflops16: missing":      "accelerators: [{name: a, memoryGB: 1, bandwidthGBps: 1}]",
		"accelerators[1].name: \"A\" is there":   "accelerators: [{name: a, memoryGB: 1, bandwidthGBps: 1, tflops16: 1}, {name: A, memoryGB: 1, bandwidthGBps: 1, tflops16: 1}]",
		"reading accelerators:":                  "accelerators: [{name: a, memory: 1}]",
	} {
		if _, err := ParseAccelerators([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("want an error that begins with %q, got %v", want, err)
		}
	}
}

func TestPeakFallsBackToWiderArithmetic(t *testing.T) {
	for _, c := range []struct {
		name string
		p    Precision
		want float64
	}{{"A100", FP8, 312e12}, {"H100", FP4, 1979e12}, {"B200", FP4, 9000e12}, {"H100", INT4, 989.5e12}, {"H100", Unstated, 989.5e12}} {
		a, err := FindAccelerator(c.name)
		if err != nil || a.Peak(c.p) != c.want {
			t.Errorf("%s at %v: %g, %v", c.name, c.p, a.Peak(c.p), err)
		}
	}
}

func TestPrecisionsHaveNames(t *testing.T) {
	for p := BF16; p <= INT4; p++ {
		if got, err := ParsePrecision(p.String()); err != nil || got != p {
			t.Errorf("%v reads as %v, %v", p, got, err)
		}
	}
	if _, err := ParsePrecision("fp3"); err == nil || !strings.Contains(err.Error(), "fp8") {
		t.Errorf("unknown precision: %v", err)
	}
}
