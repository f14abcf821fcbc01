package config

import (
	"fmt"
	"time"

	"penstock.dev/penstock/internal/health"
)

// Sources are where a pool's endpoints come from beside the list in the file.
type Sources struct {
	// EndpointsFile is a file with a list of endpoints, read again when it
	// changes.
	EndpointsFile string `json:"endpointsFile"`
	// DNS is a name whose addresses are endpoints.
	DNS DNS `json:"dns"`
	// API lets endpoints be put in and taken out over the admin port, and engines
	// register themselves.
	API bool `json:"api"`
	// DrainTimeout is how long an endpoint that was taken out may finish what it
	// has before it is forgotten.
	DrainTimeout time.Duration `json:"drainTimeout"`
}

// DNS is a name whose addresses are endpoints.
type DNS struct {
	// Host is the name; without one DNS is not used.
	Host string `json:"host"`
	// Port is that of the servers; with srv the records have their own.
	Port int `json:"port"`
	// Scheme is http or https.
	Scheme string `json:"scheme"`
	// SRV asks for service records instead of addresses.
	SRV bool `json:"srv"`
	// Every is the time between two questions.
	Every time.Duration `json:"every"`
}

// Reload says how a changed file is taken on while serving.
type Reload struct {
	// Watch looks for changes of the file; without, only a SIGHUP reloads.
	Watch bool `json:"watch"`
	// Every is the time between two looks.
	Every time.Duration `json:"every"`
	// Rollback says when a change is taken back because requests fail.
	Rollback health.CanaryConfig `json:"rollback"`
}

// defaultSources use nothing but the list in the file.
func defaultSources() Sources {
	return Sources{DNS: DNS{Scheme: "http", Every: 10 * time.Second}, DrainTimeout: 5 * time.Minute}
}

func defaultReload() Reload {
	return Reload{Watch: true, Every: 2 * time.Second, Rollback: health.DefaultCanary()}
}

// any reports whether there is a source at all.
func (s Sources) any() bool { return s.EndpointsFile != "" || s.DNS.Host != "" || s.API }

func (s Sources) validate(path string, errs *problems) {
	positive(errs, path+".drainTimeout", s.DrainTimeout)
	d := s.DNS
	if d.Host == "" {
		return
	}
	if d.Scheme != "http" && d.Scheme != "https" {
		errs.add(path+".dns.scheme", "must be http or https, is %q", d.Scheme)
	}
	if !d.SRV && (d.Port < 1 || d.Port > 65535) {
		errs.add(path+".dns.port", "must be between 1 and 65535, is %d", d.Port)
	}
	if d.SRV && d.Port != 0 {
		errs.add(path+".dns.port", "has no use with srv: service records have ports of their own")
	}
	positive(errs, path+".dns.every", d.Every)
}

func (r Reload) validate(errs *problems) {
	positive(errs, "reload.every", r.Every)
	for _, err := range r.Rollback.Validate() {
		*errs = append(*errs, fmt.Errorf("reload.rollback.%w", err))
	}
}
