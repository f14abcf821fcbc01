package obs

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
)

// Transfers is what is counted of the KV that engines hand over to each other.
type Transfers struct {
	Flows     []exchange.Flow
	Links     []exchange.State
	Instances map[string]int    // by role
	Refused   map[string]uint64 // requests of engines, by why
	Barred    map[string]int    // pairs that cannot exchange KV, by pool
}

var (
	descTransfers        = prometheus.NewDesc("penstock_transfers_total", "Transfers of KV by what became of them: done, failed (an engine has), aborted, expired.", []string{"source", "outcome"}, nil)
	descTransferFailures = prometheus.NewDesc("penstock_transfer_failures_total", "Transfers of KV that ended because an engine has failed, by kind.", []string{"kind"}, nil)
	descTransfersOpen    = prometheus.NewDesc("penstock_transfers_open", "Transfers of KV that are planned or under way.", []string{"source"}, nil)
	descTransferBytes    = prometheus.NewDesc("penstock_transfer_bytes_total", "Bytes of KV moved, where the size of a token's is known.", []string{"source"}, nil)
	descTransferTokens   = prometheus.NewDesc("penstock_transfer_tokens_total", "Prompt tokens whose KV was moved.", []string{"source"}, nil)
	descTransferSeconds  = prometheus.NewDesc("penstock_transfer_seconds_total", "Time that timed transfers took (measured), and were predicted to take (predicted).", []string{"source", "kind"}, nil)
	descTransfersTimed   = prometheus.NewDesc("penstock_transfers_timed_total", "Transfers whose time was measured.", []string{"source"}, nil)
	descLinkBandwidth    = prometheus.NewDesc("penstock_transfer_link_bytes_per_second", "Bandwidth of one pair of ranks between two domains, as finished transfers have taught.", []string{"from", "to"}, nil)
	descLinkLatency      = prometheus.NewDesc("penstock_transfer_link_latency_seconds", "Time to the first byte between two domains, likewise.", []string{"from", "to"}, nil)
	descInstances        = prometheus.NewDesc("penstock_transfer_instances", "Engines that are registered, by role.", []string{"role"}, nil)
	descTransferRefused  = prometheus.NewDesc("penstock_transfer_refused_total", "Requests of engines that were refused, by why.", []string{"reason"}, nil)
	descBarred           = prometheus.NewDesc("penstock_pool_barred_pairs", "Pairs of endpoints that cannot exchange KV though their connector is the same.", []string{"pool"}, nil)
)

// CollectTransfers has every scrape tell what told returns.
func (m *Metrics) CollectTransfers(told func() Transfers) {
	m.registry.MustRegister(&transferCollector{told, m.names})
}

type transferCollector struct {
	told  func() Transfers
	names *bounded
}

// Describe implements prometheus.Collector.
func (c *transferCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descTransfers, descTransferFailures, descTransfersOpen, descTransferBytes, descTransferTokens, descTransferSeconds, descTransfersTimed,
		descLinkBandwidth, descLinkLatency, descInstances, descTransferRefused, descBarred,
	} {
		ch <- d
	}
}

// bySource are the sums of the flows of one source.
type bySource struct {
	done, failed, aborted, expired, timed uint64
	bytes, tokens                         int64
	open                                  int
	took, expected                        float64
}

func (s *bySource) add(f *exchange.Flow) {
	var failed uint64
	for _, n := range f.Failed {
		failed += n
	}
	s.done, s.failed, s.aborted, s.expired = s.done+f.Done, s.failed+failed, s.aborted+f.Aborted-failed, s.expired+f.Expired
	s.bytes, s.tokens, s.open, s.timed = s.bytes+f.Bytes, s.tokens+f.Tokens, s.open+f.Open, s.timed+f.Took.Count
	s.took, s.expected = s.took+f.Took.Sum.Seconds(), s.expected+f.Expected.Sum.Seconds()
}

// Collect implements prometheus.Collector.
func (c *transferCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	told := c.told()
	sums, failures := map[string]*bySource{}, map[fleet.Failure]uint64{}
	for i := range told.Flows {
		f := &told.Flows[i]
		label := c.names.label(f.Source)
		if sums[label] == nil {
			sums[label] = &bySource{}
		}
		sums[label].add(f)
		for kind, n := range f.Failed {
			failures[kind] += n
		}
	}
	for source, s := range sums {
		for outcome, n := range map[string]uint64{"done": s.done, "failed": s.failed, "aborted": s.aborted, "expired": s.expired} {
			count(descTransfers, float64(n), source, outcome)
		}
		gauge(descTransfersOpen, float64(s.open), source)
		count(descTransferBytes, float64(s.bytes), source)
		count(descTransferTokens, float64(s.tokens), source)
		count(descTransfersTimed, float64(s.timed), source)
		count(descTransferSeconds, s.took, source, "measured")
		count(descTransferSeconds, s.expected, source, "predicted")
	}
	for kind, n := range failures {
		count(descTransferFailures, float64(n), kind.String())
	}
	for role, n := range told.Instances {
		gauge(descInstances, float64(n), role)
	}
	for reason, n := range told.Refused {
		count(descTransferRefused, float64(n), reason)
	}
	for pool, n := range told.Barred {
		gauge(descBarred, float64(n), pool)
	}
	c.links(gauge, told.Links)
}

// maxLinkLabels bounds the links that metrics tell apart; /api/transfers has all.
const maxLinkLabels = 100

func (c *transferCollector) links(gauge func(*prometheus.Desc, float64, ...string), links []exchange.State) {
	for i, l := range links {
		if i >= maxLinkLabels {
			return
		}
		from, to := strconv.Quote(l.From), strconv.Quote(l.To)
		gauge(descLinkBandwidth, l.BytesPerSecond, from[1:len(from)-1], to[1:len(to)-1])
		gauge(descLinkLatency, l.LatencySeconds, from[1:len(from)-1], to[1:len(to)-1])
	}
}
