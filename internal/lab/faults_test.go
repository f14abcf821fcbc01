package lab

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"penstock.dev/penstock/internal/sim"
)

func TestFaultsAreReadWhereTheyHappen(t *testing.T) {
	s := scene(t, 60) // replicas 0 and 1 are H100, 2 is A100
	got, err := ParseFaults([]byte(`
- {at: 30s, variant: a100, kind: add, delay: 5s}
- {at: 10s, replica: 1, kind: crash}
- {at: 15s, replica: 1, kind: restart, delay: 1m30s}
- {at: 10s, variant: H100, kind: slow, factor: 1.5}
- {at: 31s, variant: H100, kind: add}
- {at: 32s, variant: A100, kind: add}
- {at: 0s, replica: 0, kind: mute}
`), s.Variants)
	if err != nil {
		t.Fatal(err)
	}
	const sec = time.Second
	want := []sim.Fault{
		{At: 0, Replica: 0, Kind: sim.Mute},
		{At: 10 * sec, Replica: 1, Kind: sim.Crash},
		{At: 10 * sec, Replica: 0, Kind: sim.Slow, Factor: 1.5},
		{At: 10 * sec, Replica: 1, Kind: sim.Slow, Factor: 1.5},
		{At: 15 * sec, Replica: 1, Kind: sim.Restart, Delay: 90 * sec},
		{At: 30 * sec, Replica: 4, Kind: sim.Add, Delay: 5 * sec},
		{At: 31 * sec, Replica: 3, Kind: sim.Add},
		{At: 32 * sec, Replica: 5, Kind: sim.Add},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	s.Faults = got
	r, err := s.Run(t.Context(), Cell{Policy: "least-request", Load: 1, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	for k, n := range r.PerReplica {
		if n == 0 || len(r.PerReplica) != 6 {
			t.Errorf("replica %d of %d got %d requests", k, len(r.PerReplica), n)
		}
	}
}

func TestBadFaultsNameTheirField(t *testing.T) {
	s := scene(t, 10)
	for text, want := range map[string]string{
		"at: 60s":                                               "want a list",
		"- {at: 60s, replica: 3, kind: crash}":                  "faults[0].replica",
		"- {at: 60s, replica: -1, kind: crash}":                 "faults[0].replica",
		"- {at: 60s, kind: crash}":                              "faults[0].replica",
		"- {at: 60s, replica: 1, variant: H100, kind: crash}":   "faults[0].replica",
		"- {at: 60s, variant: B9, kind: crash}":                 "faults[0].variant",
		"- {at: 60, replica: 1, kind: crash}":                   "faults[0].at",
		"- {at: -3s, replica: 1, kind: crash}":                  "faults[0].at",
		"- {replica: 1, kind: crash}":                           "faults[0].at",
		"- {at: 3s, replica: 1}":                                "faults[0].kind",
		"- {at: 3s, replica: 1, kind: burn}":                    "faults[0].kind",
		"- {at: 3s, replica: 1, kind: slow}":                    "faults[0].factor",
		"- {at: 3s, replica: 1, kind: slow, factor: 0}":         "faults[0].factor",
		"- {at: 3s, replica: 1, kind: slow, factor: fast}":      "faults[0].factor",
		"- {at: 3s, replica: 1, kind: crash, factor: 2}":        "faults[0].factor",
		"- {at: 3s, replica: 1, kind: crash, delay: 2s}":        "faults[0].delay",
		"- {at: 3s, replica: 1, kind: crash, how: hard}":        "faults[0].how",
		"- {at: 3s, replica: 1, replica: 2, kind: crash}":       "replica",
		"- {at: 3s, replica: 1, kind: mute}\n- {kind: restart}": "faults[1].at",
	} {
		if _, err := ParseFaults([]byte(text), s.Variants); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v; want %s named", text, err, want)
		}
	}
}
