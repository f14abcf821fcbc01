package kv

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/fleet"
)

func TestAdaptersAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Adapters
		var model []fleet.Adapter // latest first
		slots := 0
		use := func(a fleet.Adapter) {
			model = slices.DeleteFunc(model, func(x fleet.Adapter) bool { return x == a })
			model = slices.Insert(model, 0, a)
		}
		keep := func() {
			most := fleet.MaxAdapters
			if slots > 0 {
				most = min(slots, most)
			}
			model = model[:min(len(model), most)]
		}
		adapter := rapid.Custom(func(t *rapid.T) fleet.Adapter { return fleet.Adapter(rapid.IntRange(1, 25).Draw(t, "adapter")) })
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				s.Clear()
				model = nil
			case 1, 2:
				told := fleet.Adapters{Max: rapid.IntRange(0, 20).Draw(t, "max")}
				for _, a := range rapid.SliceOfN(adapter, 0, 4).Draw(t, "told") {
					told.Add(a)
				}
				if told.Max > 0 {
					slots = told.Max
				}
				keep()
				s.Told(&told)
				for _, a := range slices.Backward(told.List[:told.Count]) {
					use(a)
					keep()
				}
			default:
				a := adapter.Draw(t, "use")
				s.Use(a)
				use(a)
			}
			keep()
			for a := fleet.Adapter(1); a <= 25; a++ {
				want := fleet.AdapterRoom
				switch {
				case slices.Contains(model, a):
					want = fleet.AdapterLoaded
				case slots > 0 && len(model) >= min(slots, fleet.MaxAdapters):
					want = fleet.AdapterFull
				}
				if got := s.Fit(a); got != want {
					t.Fatalf("adapter %d: %v, want %v; model %v of %d", a, got, want, model, slots)
				}
			}
		}
		if s.Fit(fleet.NoAdapter) != fleet.AdapterNone {
			t.Fatal("the base model needs no adapter")
		}
	})
}
