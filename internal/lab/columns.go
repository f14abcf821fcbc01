package lab

import "fmt"

// Column is one figure of a row, for people.
type Column struct {
	Head string
	Text func(r *Row) string
}

// Served returns the columns of how much was served, how well, and at what cost.
func Served() []Column {
	return []Column{
		{"policy", func(r *Row) string { return r.Policy }},
		{"req/s", func(r *Row) string { return r.Rate.Text(1, "%.2f", "") }},
		{"out tok/s", func(r *Row) string { return r.Output.Text(1, "%.0f", "") }},
		{"good req/s", func(r *Row) string { return r.GoodRate.Text(1, "%.2f", "") }},
		{"good", func(r *Row) string { return r.GoodShare.Text(100, "%.1f", " %") }},
		{"bound", func(r *Row) string { return r.Bound.Text(100, "%.1f", " %") }},
		{"cached", func(r *Row) string { return r.Cached.Text(100, "%.1f", " %") }},
		{"imbalance", func(r *Row) string { return r.Imbalance.Text(1, "%.2f", "") }},
		{"preempted", func(r *Row) string { return r.Preempted.Text(1, "%.0f", "") }},
		{"retries", func(r *Row) string { return r.Retries.Text(1, "%.0f", "") }},
		{"failed", func(r *Row) string { return r.Failed.Text(1, "%.0f", "") }},
		{"refused", func(r *Row) string { return r.Refused.Text(1, "%.0f", "") }},
		{"$/h", func(r *Row) string {
			if r.Cost == 0 {
				return "-"
			}
			return fmt.Sprintf("%.2f", r.Cost)
		}},
		{"$/M out", func(r *Row) string { return r.CostPerTok.Text(1, "%.2f", "") }},
	}
}

// shortTime is how many seconds are so few that they are told with more digits.
const shortTime = 1

// Speed returns the columns of how fast it was, and how well that was foreseen.
func Speed() []Column {
	list := []Column{{"policy", func(r *Row) string { return r.Policy }}}
	for _, m := range []struct {
		name, format, unit string
		scale              float64
		of                 func(r *Row) *Spread
	}{
		{"TTFT", "%.2f", " s", 1, func(r *Row) *Spread { return &r.TTFT }},
		{"TPOT", "%.1f", " ms", 1000, func(r *Row) *Spread { return &r.TPOT }},
		{"E2E", "%.1f", " s", 1, func(r *Row) *Spread { return &r.E2E }},
	} {
		for _, q := range []struct {
			name string
			of   func(s *Spread) Interval
		}{
			{m.name + " mean", func(s *Spread) Interval { return s.Mean }},
			{"p50", func(s *Spread) Interval { return s.P50 }},
			{"p90", func(s *Spread) Interval { return s.P90 }},
			{"p99", func(s *Spread) Interval { return s.P99 }},
		} {
			list = append(list, Column{q.name, func(r *Row) string {
				v, format := q.of(m.of(r)), m.format
				if m.scale == 1 && v.Mean < shortTime {
					format = "%.3f"
				}
				return v.Text(m.scale, format, m.unit)
			}})
		}
	}
	return append(
		list, Column{"TTFT error", func(r *Row) string { return r.TTFTError.Text(100, "%.0f", " %") }},
		Column{"TPOT error", func(r *Row) string { return r.TPOTError.Text(100, "%.0f", " %") }},
	)
}
