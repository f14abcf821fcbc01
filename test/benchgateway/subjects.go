//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

// The names of what is measured.
const (
	penstock = "penstock"
	haproxy  = "haproxy"
	floor    = "reverseproxy"
	burnt    = "reverseproxy+200us" // the floor with work injected, to check the bench itself
	direct   = "direct"             // no proxy at all
	versus   = "versus"             // another build of the gateway
)

// injected is what burnt wastes on each request.
const injected = 200 * time.Microsecond

// startPenstock runs the built binary with a Fleet file and nothing else: every
// feature that is on by default is on, the access line included.
func startPenstock(name, dir, binary string, urls []string) (*process, error) {
	var file strings.Builder
	fmt.Fprintf(&file, "apiVersion: penstock.dev/v1alpha1\nkind: Fleet\npools:\n- model: %s\n  endpoints:\n", model)
	for _, u := range urls {
		fmt.Fprintf(&file, "  - url: %s\n", u)
	}
	path := dir + "/" + name + ".yaml"
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	admin, err := freeAddr()
	if err != nil {
		return nil, err
	}
	p, err := startProcess(name, dir, addr, binary, "gateway", "--config", path, "--listen", addr, "--admin-listen", admin, "--drain-delay", "0s")
	if err != nil {
		return nil, err
	}
	p.admin = "http://" + admin
	return p, p.awaitReady()
}

// awaitReady waits until the gateway says that it is ready.
func (p *process) awaitReady() error {
	for range 100 {
		resp, err := http.Get("http://" + p.addr + "/readyz") //nolint:noctx // loopback, and the process is ours
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.stop()
	return errors.New(p.name + " does not become ready")
}

// haproxyConfig balances the same endpoints with what an operator would write
// for streams: connections reused, events passed on at once, no log.
const haproxyConfig = `global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 2s
  timeout client 2m
  timeout server 5m
  timeout http-keep-alive 2m
  http-reuse always
  option http-no-delay
  balance roundrobin
frontend public
  bind %s
  default_backend engines
backend engines
`

func startHAProxy(dir, binary string, urls []string) (*process, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	var file strings.Builder
	fmt.Fprintf(&file, haproxyConfig, addr)
	for i, u := range urls {
		fmt.Fprintf(&file, "  server e%d %s\n", i, strings.TrimPrefix(u, "http://"))
	}
	path := dir + "/haproxy.cfg"
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		return nil, err
	}
	return startProcess(haproxy, dir, addr, binary, "-db", "-f", path)
}

// startFloor runs this program as the floor.
func startFloor(name, dir string, urls []string, burn time.Duration) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	return startProcess(name, dir, addr, self, "--serve-floor", addr, "--backends", strings.Join(urls, ","), "--burn", burn.String())
}

// startAll starts the four processes that are measured side by side.
func startAll(o options, dir string, urls []string) (map[string]*process, error) {
	all := map[string]*process{}
	starts := map[string]func() (*process, error){
		penstock: func() (*process, error) { return startPenstock(penstock, dir, o.penstock, urls) },
		haproxy:  func() (*process, error) { return startHAProxy(dir, o.haproxy, urls) },
		floor:    func() (*process, error) { return startFloor(floor, dir, urls, 0) },
		burnt:    func() (*process, error) { return startFloor(burnt, dir, urls, injected) },
	}
	if o.versus != "" {
		starts[versus] = func() (*process, error) { return startPenstock(versus, dir, o.versus, urls) }
	}
	for name, start := range starts {
		p, err := start()
		if err != nil {
			stopAll(all)
			return nil, err
		}
		all[name] = p
	}
	return all, nil
}

func stopAll(all map[string]*process) {
	for _, p := range all {
		p.stop()
	}
}
