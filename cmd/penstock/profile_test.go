package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/profile"
)

// TestProfileOnceForSiblings profiles one engine in full, checks its sibling with
// one probe, refuses what is another combination, and lets a Fleet file take what
// was measured.
func TestProfileOnceForSiblings(t *testing.T) {
	first, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{Speedup: 10, Engine: server.SGLang}})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{Speedup: 10, Engine: server.SGLang, Replica: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	file := filepath.Join(t.TempDir(), "profile.yaml")
	args := func(url string, more ...string) []string {
		return append([]string{"profile", "--target", url, "--accelerator", "H100", "--slo-tpot", "3ms", "--budget", "5s", "--error", "0.2"}, more...)
	}
	code, out, errs := penstock(t, args(first.URL(), "--out", file)...)
	if code != 0 || !strings.Contains(out, "\nmax concurrency\n") || !strings.Contains(errs, "probe 2: ") {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	p, wrong := config.LoadProfile(file)
	if len(wrong) > 0 || p.Key.Engine != "sglang" || p.Key.TP != 2 || p.Key.Version != server.SGLangVersion || p.Limits.MaxSeqs != 256 || p.StepMs.Base <= 0 {
		t.Fatalf("written: %+v, %v", p, wrong)
	}
	for _, flag := range []string{"--profile", "--out"} {
		code, out, errs = penstock(t, args(second.URL(), flag, file, "--json")...)
		var r profile.Report
		// On a machine that is busy a sibling may seem slow: the exit code says the same.
		if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Points) != 1 || r.Check == nil || (code == 0) != r.Check.Holds {
			t.Errorf("%s: exit %d, %v: %s%s", flag, code, err, out, errs)
		}
	}
	for flags, want := range map[string]string{
		"--profile " + file + " --accelerator H200": `accelerator is "H100", not "H200"`,
		"--out " + file + " --kv fp8":               `kv is "bf16", not "fp8"; --refresh`,
		"--tp 4":                                    "--tp 4: the server says 2 (/get_server_info)",
		"--accelerator abacus":                      "abacus",
		"--weights fp7":                             "--weights: ",
		"--error 0":                                 "--error",
		"--model other":                             `"other"`,
		"--config-json ../../internal/config/variants.go": "--config-json: ",
	} {
		if code, _, errs := penstock(t, args(second.URL(), strings.Fields(flags)...)...); code != 1 || !strings.Contains(errs, want) {
			t.Errorf("%s: exit %d, %s, want %q", flags, code, errs, want)
		}
	}
	fleet := filepath.Join(filepath.Dir(file), "fleet.yaml")
	text := "apiVersion: penstock.dev/v1alpha1\nkind: Fleet\npools:\n- model: Qwen/Qwen3-32B\n  endpoints: [{url: " + first.URL() + "}]\n  variants: [{name: v, accelerator: H100, tp: 2, engine: sglang, profile: profile.yaml}]\n"
	if err := os.WriteFile(fleet, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := penstock(t, "check", fleet); code != 0 {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}

func TestProfileKeepsToThisMachine(t *testing.T) {
	if code, _, errs := penstock(t, "profile", "--target", "http://192.0.2.1:8000"); code != 1 || !strings.Contains(errs, "--allow-remote") {
		t.Errorf("exit %d: %s", code, errs)
	}
}
