package obs

import (
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/live"
)

// Metrics are the gateway's own, on a registry of their own. Labels come from
// configuration (pools, models, endpoints) and closed sets, never from clients;
// of each that can grow the first maxLabels values are kept apart.
type Metrics struct {
	registry *prometheus.Registry
	models   *bounded
	names    *bounded // of endpoints
	requests *prometheus.CounterVec
	tokens   *prometheus.CounterVec
	retries  *prometheus.CounterVec
	failures *prometheus.CounterVec
	ejected  *prometheus.CounterVec
	reloads  *prometheus.CounterVec
	queue    *prometheus.HistogramVec
	ttft     *prometheus.HistogramVec
	itl      *prometheus.HistogramVec
	total    *prometheus.HistogramVec
	ttftOff  *prometheus.HistogramVec
	tpotOff  *prometheus.HistogramVec
}

// seconds are the bucket bounds of times: from a millisecond to ten minutes.
var seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}

// ratios are the bucket bounds of predicted over measured.
var ratios = []float64{.1, .25, .5, .67, .8, .9, 1, 1.1, 1.25, 1.5, 2, 4, 10}

// NewMetrics returns metrics that also collect the state of the pools that
// pools returns at each scrape, and what counted says of each by its name; nil says
// nothing.
func NewMetrics(version string, pools func() []*live.Pool, counted func(pool string) Counted) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), models: newBounded(maxLabels), names: newBounded(maxLabels)}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"pool"})
		m.registry.MustRegister(h)
		return h
	}
	m.requests = counter("penstock_requests_total", "Requests answered, by pool, model and HTTP status (499: the client left first).", "pool", "model", "status")
	m.tokens = counter("penstock_tokens_total", "Tokens as engines report them: prompt (cached included), cached, output.", "pool", "model", "kind")
	m.retries = counter("penstock_retries_total", "Attempts after the first.", "pool")
	m.failures = counter("penstock_failed_attempts_total", "Last attempts that failed, by kind.", "pool", "kind")
	m.ejected = counter("penstock_endpoint_ejections_total", "Times an endpoint was taken out.", "pool", "endpoint", "cause")
	m.reloads = counter("penstock_reloads_total", "Reloads of the Fleet file, by result.", "result")
	m.queue = histogram("penstock_queue_seconds", "Time from arrival to first dispatch.", seconds)
	m.ttft = histogram("penstock_ttft_seconds", "Time from arrival to the first token of a stream.", seconds)
	m.itl = histogram("penstock_itl_seconds", "Median time between tokens of a stream.", seconds)
	m.total = histogram("penstock_request_seconds", "Time from arrival to the end of the answer.", seconds)
	m.ttftOff = histogram("penstock_ttft_prediction_ratio", "Predicted over measured time from dispatch to first token.", ratios)
	m.tpotOff = histogram("penstock_tpot_prediction_ratio", "Predicted over measured time per output token.", ratios)
	m.registry.MustRegister(&poolCollector{pools, counted}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "penstock_build_info", Help: "1, labelled by version."}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	m.registry.MustRegister(build)
	return m
}

// Handler serves the metrics page.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Observe counts a request at its end.
func (m *Metrics) Observe(a *gateway.Access) {
	if a.Pool == "" {
		// Its model is whatever the client wrote.
		m.requests.WithLabelValues("none", "none", strconv.Itoa(a.Status)).Inc()
		return
	}
	pool, model := a.Pool, m.models.label(a.Model)
	m.requests.WithLabelValues(pool, model, strconv.Itoa(a.Status)).Inc()
	if a.Attempts > 1 {
		m.retries.WithLabelValues(pool).Add(float64(a.Attempts - 1))
	}
	if a.Failure != fleet.FailNone {
		m.failures.WithLabelValues(pool, a.Failure.String()).Inc()
	}
	if a.Usage.Known {
		m.tokens.WithLabelValues(pool, model, "prompt").Add(float64(a.Usage.Prompt))
		m.tokens.WithLabelValues(pool, model, "cached").Add(float64(max(a.Usage.Cached, 0)))
	}
	m.tokens.WithLabelValues(pool, model, "output").Add(float64(a.Usage.Output))
	m.total.WithLabelValues(pool).Observe(a.Total.Seconds())
	if a.Attempts > 0 {
		m.queue.WithLabelValues(pool).Observe(a.Queue.Seconds())
	}
	if a.TTFT > 0 {
		m.ttft.WithLabelValues(pool).Observe(a.TTFT.Seconds())
		m.observePrediction(pool, a)
	}
	if a.ITL > 0 {
		m.itl.WithLabelValues(pool).Observe(a.ITL.Seconds())
	}
}

// observePrediction compares what was believed with what was measured, for
// requests that went well at the first endpoint.
func (m *Metrics) observePrediction(pool string, a *gateway.Access) {
	if len(a.Decisions) != 1 || len(a.Decisions[0].Candidates) == 0 {
		return
	}
	believed, measured := a.Decisions[0].Candidates[0].TTFT, a.TTFT-a.Queue
	if believed > 0 && measured > 0 {
		m.ttftOff.WithLabelValues(pool).Observe(believed.Seconds() / measured.Seconds())
	}
	if n := a.Usage.Output; n > 1 && a.TTFT > 0 && a.Total > a.TTFT && a.Decisions[0].Candidates[0].TPOT > 0 {
		m.tpotOff.WithLabelValues(pool).Observe(a.Decisions[0].Candidates[0].TPOT.Seconds() * float64(n-1) / (a.Total - a.TTFT).Seconds())
	}
}

// Reloaded counts a reload by its result.
func (m *Metrics) Reloaded(result string) { m.reloads.WithLabelValues(result).Inc() }

// Ejected counts an endpoint taken out.
func (m *Metrics) Ejected(pool, endpoint string, state health.State, cause fleet.Failure) {
	if state == health.Ejected {
		m.ejected.WithLabelValues(pool, m.names.label(endpoint), cause.String()).Inc()
	}
}

// poolCollector reads the pools' state when scraped, so that the hot path sets
// no gauges.
type poolCollector struct {
	pools   func() []*live.Pool
	counted func(pool string) Counted // may be nil
}

var (
	descState        = prometheus.NewDesc("penstock_pool_requests_total", "Requests by what became of them; arrived is all of them.", []string{"pool", "state"}, nil)
	descPlans        = prometheus.NewDesc("penstock_pool_attempts_total", "Attempts dispatched to one endpoint (whole) and to two (split).", []string{"pool", "plan"}, nil)
	descShadow       = prometheus.NewDesc("penstock_shadow_decisions_total", "Placements a shadow policy decided too: all, and those it would have sent elsewhere.", []string{"pool", "decided"}, nil)
	descShadowTokens = prometheus.NewDesc("penstock_shadow_tokens_total", "Prompt tokens believed cached where requests went (live), where the shadow policy would have sent them (shadow), and all prompt tokens (prompt).", []string{"pool", "kind"}, nil)
	descShadowed     = prometheus.NewDesc("penstock_shadow_endpoint_attempts_total", "Attempts the shadow policy would have dispatched, by endpoint: its hot spots.", []string{"pool", "endpoint"}, nil)
	descQueued       = prometheus.NewDesc("penstock_pool_queued", "Requests that wait in the queue.", []string{"pool"}, nil)
	descOpen         = prometheus.NewDesc("penstock_pool_in_flight", "Requests at endpoints.", []string{"pool"}, nil)
	descInFlight     = prometheus.NewDesc("penstock_endpoint_in_flight", "Requests dispatched and not ended, by the ledger.", []string{"pool", "endpoint"}, nil)
	descBacklog      = prometheus.NewDesc("penstock_endpoint_backlog_tokens", "Prompt tokens dispatched and not yet answered with a first token.", []string{"pool", "endpoint"}, nil)
	descActive       = prometheus.NewDesc("penstock_endpoint_active_tokens", "Tokens of context in use, by the ledger.", []string{"pool", "endpoint"}, nil)
	descCached       = prometheus.NewDesc("penstock_endpoint_believed_cached_tokens", "Prompt tokens believed cached.", []string{"pool", "endpoint"}, nil)
	descFit          = prometheus.NewDesc("penstock_endpoint_fit", "1 healthy, 0.5 on trial, 0 ejected.", []string{"pool", "endpoint"}, nil)
	descAge          = prometheus.NewDesc("penstock_endpoint_sample_age_seconds", "Age of the gauges; absent when never read.", []string{"pool", "endpoint"}, nil)
	descKnown        = prometheus.NewDesc("penstock_endpoint_gauge_known", "1 for each gauge the endpoint's last page had, 0 for those it did not: unknown, not zero.", []string{"pool", "endpoint", "gauge"}, nil)
	descSent         = prometheus.NewDesc("penstock_endpoint_attempts_total", "Attempts dispatched.", []string{"pool", "endpoint"}, nil)
	descFactor       = prometheus.NewDesc("penstock_endpoint_speed_factor", "Slowness beside the endpoints of its variant, whose median is 1; absent without equals.", []string{"pool", "endpoint"}, nil)
	descSaturation   = prometheus.NewDesc("penstock_endpoint_saturation", "How near the endpoint is to the point where one more request breaks the SLO, which is 1.", []string{"pool", "endpoint"}, nil)
	descSlow         = prometheus.NewDesc("penstock_endpoint_slow", "1 when the endpoint is slower than its equals by more than chance explains.", []string{"pool", "endpoint"}, nil)
	descError        = prometheus.NewDesc("penstock_endpoint_prediction_error", "Median relative error of the latest predictions, by kind: ttft, tpot.", []string{"pool", "endpoint", "kind"}, nil)
	descLessons      = prometheus.NewDesc("penstock_endpoint_lessons_total", "Measurements from which the endpoint's variant has learnt its step time.", []string{"pool", "endpoint"}, nil)
	descDrifts       = prometheus.NewDesc("penstock_endpoint_drifts_total", "Times that the endpoint's variant was found to have changed its speed.", []string{"pool", "endpoint"}, nil)
	descFailed       = prometheus.NewDesc("penstock_endpoint_failed_attempts_total", "Attempts that failed.", []string{"pool", "endpoint"}, nil)
)

// Describe implements prometheus.Collector.
func (c *poolCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descPlans, descShadow, descShadowTokens, descShadowed, descState, descQueued, descOpen, descInFlight, descBacklog, descActive, descCached, descFit, descAge, descKnown, descSent, descFailed, descFactor, descSaturation, descSlow, descError, descLessons, descDrifts,
		descBlocks, descBlockBytes, descBlocksEvicted, descFeed, descWhole, descDemoted, descTier, descLag, descAudit, descAudits, descUnconfirmed, descBatches, descDropped, descFound, descMissing,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *poolCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	var snap fleet.Snapshot
	for _, p := range c.pools() {
		y := p.Tally()
		for state, n := range map[string]uint64{
			"arrived": y.Arrived, "done": y.Done, "shed": y.Shed, "expired": y.Expired, "failed": y.Failed, "cancelled": y.Cancelled,
		} {
			count(descState, n, p.Name(), state)
		}
		count(descPlans, y.Whole, p.Name(), "whole")
		count(descPlans, y.Split, p.Name(), "split")
		s, shadowed := p.Shadow()
		if shadowed {
			count(descShadow, s.Decisions, p.Name(), "all")
			count(descShadow, s.Disagreed, p.Name(), "elsewhere")
			count(descShadowTokens, uint64(s.LiveMatched), p.Name(), "live")
			count(descShadowTokens, uint64(s.ShadowMatched), p.Name(), "shadow")
			count(descShadowTokens, uint64(s.Prompt), p.Name(), "prompt")
		}
		blocks := p.Blocks()
		gauge(descBlocks, float64(blocks.Blocks), p.Name())
		gauge(descBlockBytes, float64(blocks.Bytes), p.Name())
		count(descBlocksEvicted, blocks.Evicted, p.Name())
		if c.counted != nil {
			told := c.counted(p.Name())
			told.collect(count, p.Name())
		}
		gauge(descQueued, float64(y.Queued), p.Name())
		gauge(descOpen, float64(y.InFlight), p.Name())
		p.View(&snap)
		for _, e := range snap.Endpoints {
			name := p.EndpointName(e.ID)
			gauge(descInFlight, float64(e.InFlight), p.Name(), name)
			gauge(descBacklog, float64(e.Backlog), p.Name(), name)
			gauge(descActive, float64(e.Active), p.Name(), name)
			gauge(descCached, float64(e.Cached), p.Name(), name)
			gauge(descFit, map[string]float64{health.Healthy.String(): 1, health.Trial.String(): 0.5}[e.Health], p.Name(), name)
			if e.SampleAge >= 0 {
				gauge(descAge, e.SampleAge.Seconds(), p.Name(), name)
				for i, known := range fleet.AllGauges.Names() {
					v := 0.0
					if e.Gauges.Known.Has(1 << i) {
						v = 1
					}
					gauge(descKnown, v, p.Name(), name, known)
				}
			}
			collectSpeed(gauge, count, e.Speed, p.Name(), name)
			collectCache(gauge, count, &e.Cache, p.Name(), name)
			count(descSent, e.Requests, p.Name(), name)
			count(descFailed, e.Failures, p.Name(), name)
			if shadowed {
				count(descShadowed, e.Shadowed, p.Name(), name)
			}
		}
	}
}

// collectSpeed tells what is believed of an endpoint's speed.
func collectSpeed(gauge func(*prometheus.Desc, float64, ...string), count func(*prometheus.Desc, uint64, ...string), s fleet.Speed, pool, name string) {
	gauge(descSaturation, s.Saturation, pool, name)
	if s.Factor > 0 {
		gauge(descFactor, s.Factor, pool, name)
		slow := 0.0
		if s.Slow {
			slow = 1
		}
		gauge(descSlow, slow, pool, name)
	}
	if !math.IsNaN(s.TTFTError) {
		gauge(descError, s.TTFTError, pool, name, "ttft")
	}
	if !math.IsNaN(s.TPOTError) {
		gauge(descError, s.TPOTError, pool, name, "tpot")
	}
	count(descLessons, uint64(s.Lessons), pool, name)
	count(descDrifts, uint64(s.Drifts), pool, name)
}

// What is known of caches by KV events.
var (
	descBlocks        = prometheus.NewDesc("penstock_kv_index_blocks", "Different blocks in the index of KV events.", []string{"pool"}, nil)
	descBlockBytes    = prometheus.NewDesc("penstock_kv_index_bytes", "Memory of the index of KV events.", []string{"pool"}, nil)
	descBlocksEvicted = prometheus.NewDesc("penstock_kv_index_evicted_blocks_total", "Blocks forgotten since the index was full.", []string{"pool"}, nil)
	descFeed          = prometheus.NewDesc("penstock_kv_feed_state", "1, labelled by the state of the endpoint's feed of KV events: connecting, replaying, live, gap, unknown, restarted, misfit.", []string{"pool", "endpoint", "state"}, nil)
	descWhole         = prometheus.NewDesc("penstock_kv_feed_whole", "1 when all that is on the endpoint's GPU is known by its events.", []string{"pool", "endpoint"}, nil)
	descDemoted       = prometheus.NewDesc("penstock_kv_feed_demoted", "1 when the endpoint's events were found to tell what is not so, and history is believed instead.", []string{"pool", "endpoint"}, nil)
	descTier          = prometheus.NewDesc("penstock_kv_confirmed_tokens", "Tokens whose KV the endpoint has by its events, by tier.", []string{"pool", "endpoint", "tier"}, nil)
	descLag           = prometheus.NewDesc("penstock_kv_lag_seconds", "Time from a prompt's first token to the events that confirm it, on average.", []string{"pool", "endpoint"}, nil)
	descAudit         = prometheus.NewDesc("penstock_kv_audit_tokens_total", "Prompt tokens of answers whose engine told how many were cached: believed cached, reported cached, believed too much (over), believed too little (under).", []string{"pool", "endpoint", "kind"}, nil)
	descAudits        = prometheus.NewDesc("penstock_kv_audits_total", "Answers whose engine told how many prompt tokens were cached.", []string{"pool", "endpoint"}, nil)
	descUnconfirmed   = prometheus.NewDesc("penstock_kv_unconfirmed_prompts_total", "Prompts whose events never came.", []string{"pool", "endpoint"}, nil)
)

// collectCache tells what is known of an endpoint's cache.
func collectCache(gauge func(*prometheus.Desc, float64, ...string), count func(*prometheus.Desc, uint64, ...string), c *fleet.CacheState, pool, name string) {
	count(descAudits, c.Audits, pool, name)
	for kind, n := range map[string]fleet.Tokens{"believed": c.Claimed, "reported": c.Reported, "over": c.Over, "under": c.Under} {
		count(descAudit, uint64(n), pool, name, kind)
	}
	if c.Feed == "" {
		return
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(descFeed, 1, pool, name, c.Feed)
	gauge(descWhole, truth(c.Whole), pool, name)
	gauge(descDemoted, truth(c.Demoted), pool, name)
	gauge(descLag, c.Lag.Seconds(), pool, name)
	count(descUnconfirmed, c.Unconfirmed, pool, name)
	for tier, n := range map[string]fleet.Tokens{"gpu": c.GPU, "cpu": c.CPU, "disk": c.Disk, "shared": c.Shared} {
		gauge(descTier, float64(n), pool, name, tier)
	}
}

// Observer fans a request's end out to the log, the metrics, the telemetry and
// the ring.
type Observer struct {
	Access  func(*gateway.Access) // the access line; nil for none
	Metrics *Metrics
	Ring    *Ring
	// Telemetry may be nil.
	Telemetry *Telemetry
}

// Observe implements the gateway's observer.
func (o Observer) Observe(a *gateway.Access) {
	o.Metrics.Observe(a)
	o.Telemetry.Observe(a)
	o.Ring.Add(time.Now(), a)
	if o.Access != nil {
		o.Access(a)
	}
}
