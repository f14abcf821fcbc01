package config

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"penstock.dev/penstock/internal/engine"
)

// problems collects what is wrong, each with a field path.
type problems []error

func (p *problems) add(path, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: %w", path, fmt.Errorf(format, args...)))
}

// Validate returns every problem of a completed fleet, in order of the file.
func (f Fleet) Validate() []error { return f.validate(true) }

// validate is Validate; only a fleet that serves needs endpoints.
func (f Fleet) validate(serve bool) []error {
	var errs problems
	if f.APIVersion != APIVersion {
		errs.add("apiVersion", "must be %q, is %q", APIVersion, f.APIVersion)
	}
	if f.Kind != Kind {
		errs.add("kind", "must be %q, is %q", Kind, f.Kind)
	}
	f.Limits.validate(&errs)
	positive(&errs, "scrape.interval", f.Scrape.Interval)
	positive(&errs, "scrape.timeout", f.Scrape.Timeout)
	if f.Scrape.IdleInterval < f.Scrape.Interval {
		errs.add("scrape.idleInterval", "must be at least scrape.interval (%v), is %v", f.Scrape.Interval, f.Scrape.IdleInterval)
	}
	f.Reload.validate(&errs)
	f.Transfer.validate("transfer", &errs)
	if f.Scrape.Interval > 0 && f.Scrape.Interval < minScrape {
		errs.add("scrape.interval", "must be at least %v: reading metrics costs the engine too", minScrape)
	}
	if len(f.Pools) == 0 {
		errs.add("pools", "is empty: name at least one pool with a model and endpoints")
	}
	names, models := map[string]int{}, map[string]int{}
	for i := range f.Pools {
		path := fmt.Sprintf("pools[%d]", i)
		f.Pools[i].validate(path, serve, &errs)
		unique(&errs, path+".name", f.Pools[i].Name, i, names, "pools[%d]")
		unique(&errs, path+".model", f.Pools[i].Model, i, models, "pools[%d]")
	}
	validateAliases(f.Pools, &errs)
	f.Front.validate(&errs)
	return errs
}

// minScrape bounds how often metrics pages are read.
const minScrape = 50 * time.Millisecond

func positive(errs *problems, path string, d time.Duration) {
	if d <= 0 {
		errs.add(path, "must be positive, is %v", d)
	}
}

// unique reports whether name, of the i-th element, is empty or new.
func unique(errs *problems, path, name string, i int, seen map[string]int, where string) bool {
	if name == "" {
		return true
	}
	if first, dup := seen[name]; dup {
		errs.add(path, "%q is that of "+where+" already", name, first)
		return false
	}
	seen[name] = i
	return true
}

func (l Limits) validate(errs *problems) {
	if l.MaxBodyBytes < 1 {
		errs.add("limits.maxBodyBytes", "must be at least 1, is %d", l.MaxBodyBytes)
	}
	if l.MaxHeaderBytes < 1024 {
		errs.add("limits.maxHeaderBytes", "must be at least 1024, is %d", l.MaxHeaderBytes)
	}
	if l.MaxRequests < 0 {
		errs.add("limits.maxRequests", "must not be negative, is %d", l.MaxRequests)
	}
	if l.MaxConnections < 0 {
		errs.add("limits.maxConnections", "must not be negative, is %d", l.MaxConnections)
	}
	positive(errs, "limits.bodyTimeout", l.BodyTimeout)
	positive(errs, "limits.connectTimeout", l.ConnectTimeout)
	positive(errs, "limits.firstByteTimeout", l.FirstByteTimeout)
	positive(errs, "limits.idleTimeout", l.IdleTimeout)
	positive(errs, "limits.writeTimeout", l.WriteTimeout)
}

func (p *Pool) validate(path string, serve bool, errs *problems) {
	if p.Model == "" {
		errs.add(path+".model", "is required: the name that clients ask for")
	}
	if _, err := engine.DialectByName(p.Dialect); err != nil {
		errs.add(path+".dialect", "%w", err)
	}
	if len(p.Endpoints) == 0 && !p.any() && (serve || len(p.Variants) == 0) {
		errs.add(path+".endpoints", "is empty: a pool needs endpoints here, or endpointsFile, dns or api")
	}
	p.Sources.validate(path, errs)
	p.KV.validate(path+".kv", errs)
	p.validateRoles(path, errs)
	urls, names := map[string]int{}, map[string]int{}
	for i, e := range p.Endpoints {
		at := fmt.Sprintf("%s.endpoints[%d]", path, i)
		if _, err := engine.CheckURL(e.URL); err != nil {
			errs.add(at+".url", "%w", err)
			continue
		}
		address(errs, at+".events", e.Events)
		address(errs, at+".replay", e.Replay)
		if unique(errs, at+".url", e.URL, i, urls, "endpoints[%d]") {
			unique(errs, at+".name", e.Name, i, names, "endpoints[%d]")
		}
		if e.validateRanks(at, &p.KV, errs) {
			e.uniqueRanks(at, i, urls, names, errs)
		}
	}
	p.Engine.validate(path+".engine", errs)
	for _, name := range slices.Sorted(maps.Keys(p.Adapters)) {
		if name == "" || p.Adapters[name] == "" || name == p.Model {
			errs.add(path+".adapters", "%q: %q: must be a name that is not the model's, and a path", name, p.Adapters[name])
		}
	}
	for _, err := range p.Credentials.Validate() {
		*errs = append(*errs, fmt.Errorf("%s.credentials.%w", path, err))
	}
	for _, err := range p.TLS.Validate() {
		*errs = append(*errs, fmt.Errorf("%s.tls.%w", path, err))
	}
	if err := engine.CheckHTTP2(p.HTTP2); err != nil {
		errs.add(path+".http2", "%w", err)
	}
	for _, err := range p.Config.Validate() {
		*errs = append(*errs, fmt.Errorf("%s.%w", path, err))
	}
}

func (e Engine) validate(path string, errs *problems) {
	notNegative(path+".", errs, []named{{"kvTokens", float64(e.KVTokens)}, {"maxSeqs", float64(e.MaxSeqs)}, {"budgetTokens", float64(e.BudgetTokens)}})
	e.StepMs.validate(path+".stepMs", errs)
}

func (s StepMs) validate(path string, errs *problems) {
	notNegative(path+".", errs, []named{
		{"base", s.Base},
		{"perSeq", s.PerSeq},
		{"perKV", s.PerKV},
		{"perPrompt", s.PerPrompt},
		{"perPair", s.PerPair},
		{"experts", s.Experts},
		{"touch", s.Touch},
		{"shadow", s.Shadow},
		{"perRequest", s.PerRequest},
	})
	if s.Touch > 1 {
		errs.add(path+".touch", "must be between 0 and 1, is %v", s.Touch)
	}
}

// named is a number and the field it comes from.
type named struct {
	name  string
	value float64
}

func notNegative(path string, errs *problems, list []named) {
	for _, f := range list {
		if f.value < 0 {
			errs.add(path+f.name, "must not be negative, is %v", f.value)
		}
	}
}
