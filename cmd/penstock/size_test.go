package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestSizeCommand(t *testing.T) {
	args := []string{"size", "--model", "openai/gpt-oss-120b", "--accelerator", "H100", "--devices", "2", "--input", "4000", "--output", "40", "--ttft", "1s", "--tpot", "20ms", "--seeds", "1", "--within", "0.1"}
	code, out, _ := penstock(t, args...)
	if code != 0 || !strings.Contains(out, "\nBest: ") || !strings.Contains(out, "missed first") {
		t.Fatalf("exit %d\n%s", code, out)
	}
	code, out, _ = penstock(t, append(args, "--json")...)
	var all []sizedJSON
	if err := json.Unmarshal([]byte(out), &all); code != 0 || err != nil || len(all) < 3 || all[0].Rate <= 0 || all[0].At == nil || all[0].Decode.Replicas == 0 {
		t.Errorf("exit %d, %v\n%s", code, err, out)
	}
	for _, c := range []struct{ flag, value, want string }{
		{"--model", "nobody/knows", "--model: "},
		{"--accelerator", "abacus", "--accelerator: "},
		{"--nic", "fast", "--nic: want a number"},
		{"--devices", "0", "devices: must be at least 1"},
		{"--share", "2", "share: must be between"},
		{"--weights", "fp3", "--weights: "},
		{"--top", "0", "--top must be"},
	} {
		if code, _, errs := penstock(t, append(args, c.flag, c.value)...); code != 1 || !strings.Contains(errs, c.want) {
			t.Errorf("%s %s: exit %d, %q, want %q", c.flag, c.value, code, errs, c.want)
		}
	}
}
