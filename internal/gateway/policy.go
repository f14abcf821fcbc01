package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// Policy is what the gateway lets clients say, and what it says for them.
type Policy struct {
	// Trusted are the networks from which control headers are believed; from
	// elsewhere they are ignored.
	Trusted []netip.Prefix
	// Objectives are the terms that can be asked for by name.
	Objectives map[string]Objective
	// SaltPerTenant gives each tenant a prefix cache of its own.
	SaltPerTenant bool
	// Origins are those whose web pages may call the gateway; "*" is all of them.
	Origins []string
}

// Objective is a priority and an SLO with a name.
type Objective struct {
	Priority int
	SLO      fleet.SLO
}

// The control headers, each with its older name.
var (
	headerTTFT      = [...]string{"X-Llm-D-Slo-Ttft-Ms", "X-Slo-Ttft-Ms"}
	headerTPOT      = [...]string{"X-Llm-D-Slo-Tpot-Ms", "X-Slo-Tpot-Ms"}
	headerObjective = [...]string{"X-Llm-D-Inference-Objective", "X-Gateway-Inference-Objective"}
	headerTenant    = [...]string{"X-Llm-D-Inference-Fairness-Id", "X-Gateway-Inference-Fairness-Id"}
)

// terms reads the control headers of a request, if its sender may set them. What
// makes no sense is refused: a promise misread would be broken in silence.
func (x *exchange) readTerms() bool {
	if !x.policy.trusts(x.r.RemoteAddr) {
		return true
	}
	name, value, p := nameHeader(x.r.Header, headerObjective)
	x.access.Objective = value
	if p == nil {
		o := x.policy.Objectives[value]
		x.terms.Priority, x.terms.SLO = o.Priority, o.SLO
		name, x.access.Tenant, p = nameHeader(x.r.Header, headerTenant)
	}
	if p == nil {
		name, p = millisHeader(x.r.Header, headerTTFT, &x.terms.SLO.TTFT)
	}
	if p == nil {
		name, p = millisHeader(x.r.Header, headerTPOT, &x.terms.SLO.TPOT)
	}
	if p != nil {
		x.refuse(api.BadHeader(name, p.value, p.wants))
		return false
	}
	x.terms.Tenant = tenantOf(x.access.Tenant)
	return true
}

// tenantOf stands for a tenant's name.
func tenantOf(name string) fleet.Tenant {
	if name == "" {
		return fleet.NoTenant
	}
	return fleet.Tenant(max(kv.Seed([]byte("tenant"), []byte(name)), 1))
}

// badValue is a header's value that makes no sense, and what would.
type badValue struct{ value, wants string }

// first returns the first of several names that a header has, with its value.
func first(h http.Header, names [2]string) (name, value string) {
	for _, n := range names {
		if v := h.Get(n); v != "" {
			return n, v
		}
	}
	return "", ""
}

// maxNameHeader is the longest objective or fairness id taken.
const maxNameHeader = 128

func nameHeader(h http.Header, names [2]string) (name, value string, bad *badValue) {
	name, value = first(h, names)
	if value != "" && (len(value) > maxNameHeader || !isPrintable(value)) {
		return name, "", &badValue{value, "must be at most " + strconv.Itoa(maxNameHeader) + " printable characters without spaces"}
	}
	return name, value, nil
}

// maxSLO bounds what can be asked for: more is a mistake of units.
const maxSLO = 24 * time.Hour

func millisHeader(h http.Header, names [2]string, dst *time.Duration) (name string, bad *badValue) {
	name, value := first(h, names)
	if value == "" {
		return name, nil
	}
	ms, err := strconv.ParseFloat(value, 64)
	if err != nil || math.IsNaN(ms) || ms <= 0 || ms > float64(maxSLO/time.Millisecond) {
		return name, &badValue{value, "must be a number of milliseconds, above 0 and at most a day"}
	}
	*dst = time.Duration(ms * float64(time.Millisecond))
	return name, nil
}

func (p *Policy) trusts(remote string) bool {
	if len(p.Trusted) == 0 {
		return false
	}
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return false
	}
	addr := at.Addr().Unmap()
	return slices.ContainsFunc(p.Trusted, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// salt returns the cache salt of a request: its tenant's, mixed with its own if
// it has one, so that nobody can name another tenant's.
func (x *exchange) salt() string {
	const label, digits = "penstock cache salt", 16
	h := sha256.New()
	for _, part := range [...][]byte{[]byte(label), []byte(x.access.Tenant), x.req.CacheSalt} {
		h.Write(part)
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:digits])
}

// cors tells web pages of the origins allowed that they may look, and answers
// their preflight requests. It reports whether the request is done with.
func (g *Gateway) cors(w http.ResponseWriter, r *http.Request) bool {
	origins := g.policy.Load().Origins
	if len(origins) == 0 {
		return false
	}
	h := w.Header()
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	switch {
	case origin == "":
		return false
	case slices.Contains(origins, "*"):
		h.Set("Access-Control-Allow-Origin", "*")
	case slices.Contains(origins, origin):
		h.Set("Access-Control-Allow-Origin", origin)
	default:
		return false // the browser will keep the answer from the page
	}
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		h.Set("Access-Control-Expose-Headers", "X-Request-Id, Request-Id, Retry-After")
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST, DELETE")
	if wanted := r.Header.Get("Access-Control-Request-Headers"); wanted != "" {
		h.Set("Access-Control-Allow-Headers", wanted)
		h.Add("Vary", "Access-Control-Request-Headers")
	}
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}
