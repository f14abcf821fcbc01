package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
)

func TestEveryFieldIsRead(t *testing.T) {
	f, errs := Load("testdata/full.good.yaml")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	p := f.Pools[0]
	if f.Limits.IdleTimeout != 30*time.Second || f.Scrape.Interval != 500*time.Millisecond || p.Queue.MaxRequests != 500 ||
		p.Retry.Share != 0.1 || p.Health.ProbeMax != 10*time.Second || p.Policy.Weights["prefix"] != 3 || p.Index.DefaultTokens != 100_000 {
		t.Errorf("read wrong: %+v", f)
	}
	if s := p.Engine.StepMs.Step(); s.Base != 14e-3 || s.PerKV < 56e-9 || s.PerKV > 57e-9 {
		t.Errorf("step in seconds: %+v", s)
	}
	if p.Endpoints[0].URL != "http://10.0.0.1:8000" || p.Endpoints[0].Name != "10.0.0.1:8000" || p.Endpoints[1].Name != "second" {
		t.Errorf("endpoints: %+v", p.Endpoints)
	}
	if q := f.Pools[1]; q.Name != q.Model || q.Queue != pool.Default().Queue || q.Dialect != "openai" {
		t.Errorf("defaults of the second pool: %+v", q)
	}
}

func TestRanksAreRead(t *testing.T) {
	f, errs := Load("testdata/ranks.good.yaml")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	e := f.Pools[0].Endpoints
	if e[0].Ranks != 8 || e[0].RankMode != "" || e[1].RankMode != "port" || e[2].RankMode != "header" || e[3].Ranks != 0 {
		t.Errorf("%+v", e)
	}
}

func TestRolesAreRead(t *testing.T) {
	f, errs := Load("testdata/roles.good.yaml")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	want := [][]fleet.Role{{fleet.RoleBoth, fleet.RoleEncode}, {fleet.RolePrefill, fleet.RoleDecode, fleet.RoleEncode}}
	for i := range f.Pools {
		for k, e := range f.Pools[i].Endpoints {
			if got := e.FleetRole(); got != want[i][k] {
				t.Errorf("%s: %v", e.URL, got)
			}
		}
	}
}

// TestEveryRefusalIsTold decodes each bad file and finds every problem it
// promises in its comments, and no others.
func TestEveryRefusalIsTold(t *testing.T) {
	files, err := filepath.Glob("testdata/*.bad.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no bad files: %v", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, errs := Parse(raw)
		told := make([]bool, len(errs))
		for line := range strings.Lines(string(raw)) {
			want, ok := strings.CutPrefix(strings.TrimSpace(line), "# want: ")
			if !ok {
				continue
			}
			found := false
			for i, e := range errs {
				if !told[i] && strings.Contains(e.Error(), want) {
					told[i], found = true, true
					break
				}
			}
			if !found {
				t.Errorf("%s: nobody says %q", file, want)
			}
		}
		for i, e := range errs {
			if !told[i] {
				t.Errorf("%s: unexpected: %v", file, e)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*.good.yaml", "testdata/*.bad.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	f.Fuzz(func(_ *testing.T, raw []byte) { Parse(raw) })
}
