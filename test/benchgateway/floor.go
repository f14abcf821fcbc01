//go:build linux

package main

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// serveFloor is the least a Go proxy does: httputil.ReverseProxy, round robin,
// connections kept. With burn it wastes so much processor time on each request,
// which the bench must notice.
func serveFloor(listen, backends string, burn time.Duration) error {
	var targets []*url.URL
	for raw := range strings.SplitSeq(backends, ",") {
		u, err := url.Parse(raw)
		if err != nil {
			return fmt.Errorf("backend %q: %w", raw, err)
		}
		targets = append(targets, u)
	}
	var turn atomic.Uint64
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(targets[turn.Add(1)%uint64(len(targets))]) },
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true, IdleConnTimeout: time.Minute},
		ErrorLog:  log.Default(),
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		waste(burn)
		proxy.ServeHTTP(w, r)
	})
	s := &http.Server{Addr: listen, Handler: h, ReadHeaderTimeout: 10 * time.Second}
	return s.ListenAndServe()
}

// waste uses d of the process' processor time.
func waste(d time.Duration) {
	if d <= 0 {
		return
	}
	for until := used() + d; used() < until; {
	}
}

// used returns the processor time of this process.
func used() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
