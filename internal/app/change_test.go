package app

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
)

// engines starts n simulated engines and returns their URLs.
func engines(t *testing.T, n int) (urls []string) {
	t.Helper()
	for i := range n {
		node, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{Speedup: 20, Seed: 1, Replica: i}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = node.Close() })
		urls = append(urls, node.URL())
	}
	return urls
}

// changing is an app that follows a Fleet file.
type changing struct {
	*App
	t    *testing.T
	file string
	ask  chan struct{}
}

const head = "apiVersion: penstock.dev/v1alpha1\nkind: Fleet\nreload: {watch: false, every: 20ms, rollback: {window: 30s, errorRise: 0.1, minRequests: 5}}\npools:\n"

func poolYAML(name, model, rest string, urls ...string) string {
	s := fmt.Sprintf("- {name: %s, model: %q, drainTimeout: 5s, %s endpoints: [", name, model, rest)
	for _, u := range urls {
		s += "{url: " + u + "},"
	}
	return s + "]}\n"
}

func follow(t *testing.T, content string, o Options) *changing {
	t.Helper()
	c := &changing{t: t, file: filepath.Join(t.TempDir(), "fleet.yaml"), ask: make(chan struct{}, 1)}
	c.write(content)
	f, errs := config.Load(c.file)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	o.Config, o.ConfigPath, o.Reload = f, c.file, c.ask
	o.Listen, o.AdminListen, o.Version, o.Log, o.DrainTimeout = "127.0.0.1:0", "127.0.0.1:0", "test", slog.New(slog.DiscardHandler), 5*time.Second
	a, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	c.App = a
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *changing) write(content string) {
	c.t.Helper()
	if err := errors.Join(os.WriteFile(c.file+".new", []byte(content), 0o600), os.Rename(c.file+".new", c.file)); err != nil {
		c.t.Fatal(err)
	}
}

// reload writes the file, asks for a reload and waits for its result.
func (c *changing) reload(content string) admin.ReloadState {
	c.t.Helper()
	c.write(content)
	before := c.reloader.State().At
	c.ask <- struct{}{}
	return c.await("a reload", func(s admin.ReloadState) bool { return s.At.After(before) })
}

func (c *changing) await(what string, ok func(admin.ReloadState) bool) admin.ReloadState {
	c.t.Helper()
	var s admin.ReloadState
	until(c.t, what, func() bool { s = c.reloader.State(); return ok(s) })
	return s
}

// until waits for a condition, at most ten seconds.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		}
	}
}

// ask sends one short request and returns the status and body.
func (c *changing) request(model string) (int, string) {
	resp, err := http.Post(c.URL()+"/v1/completions", "application/json", strings.NewReader(fmt.Sprintf(`{"model":%q,"prompt":"x y z","max_tokens":20,"ignore_eos":true}`, model)))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body) // an error shows in the body
	return resp.StatusCode, string(body)
}

// load keeps requests coming from several clients until stop, and returns how
// many went well and what went wrong.
func (c *changing) load(model string) (stop func() (good int64, bad []string)) {
	var n atomic.Int64
	var halt atomic.Bool
	failed := make(chan string, 1000)
	done := make(chan struct{})
	const clients = 4
	for range clients {
		go func() {
			for !halt.Load() {
				if code, body := c.request(model); code == http.StatusOK {
					n.Add(1)
				} else {
					select {
					case failed <- fmt.Sprint(code, " ", body):
					default:
					}
				}
			}
			done <- struct{}{}
		}()
	}
	until(c.t, "the load to flow", func() bool { return n.Load() > clients })
	return func() (int64, []string) {
		halt.Store(true)
		for range clients {
			<-done
		}
		close(failed)
		var bad []string
		for f := range failed {
			bad = append(bad, f)
		}
		return n.Load(), bad
	}
}

const qwen = "Qwen/Qwen3-32B"

func (c *changing) endpointNames() string {
	var names []string
	for _, e := range c.fleet.pools()[0].pool.Endpoints() {
		names = append(names, e.URL)
	}
	return strings.Join(names, " ")
}

func TestReloadUnderLoadDropsNothing(t *testing.T) {
	urls := engines(t, 3)
	c := follow(t, head+poolYAML("a", qwen, "", urls[0]), Options{})
	stop := c.load(qwen)
	for i := range 10 {
		p := poolYAML("a", qwen, "", urls[i%3], urls[(i+1)%3])
		switch i % 4 {
		case 1:
			p = poolYAML("a", qwen, "policy: {name: p2c},", urls[i%3])
		case 2:
			p = poolYAML("b", qwen, "", urls[2]) // another pool takes the model over
		case 3:
			p = poolYAML("a", qwen, "dialect: openai,", urls[0]) // spoken to in another way: a new pool of the same name
		}
		if s := c.reload(head + p); s.Result != reloadApplied {
			t.Fatalf("reload %d: %+v", i, s)
		}
	}
	good, bad := stop()
	if len(bad) > 0 || good == 0 {
		t.Errorf("%d requests went well, %d failed: %.300v", good, len(bad), bad)
	}
	until(t, "the old pools to be gone", func() bool { return len(c.fleet.pools()) == 1 })
}

func TestABadFileIsRefusedWithEveryReason(t *testing.T) {
	urls := engines(t, 1)
	c := follow(t, head+poolYAML("a", qwen, "", urls[0]), Options{})
	s := c.reload(head + "- {name: a, model: 7, colour: blue}\n")
	if s.Result != reloadRefused || len(s.Problems) != 2 {
		t.Errorf("state %+v", s)
	}
	if code, body := c.request(qwen); code != http.StatusOK {
		t.Errorf("the old configuration does not serve: %d %s", code, body)
	}
	// A pool whose credentials are missing cannot be made: nothing changes.
	s = c.reload(head + poolYAML("new", "m2", "credentials: {file: /does/not/exist},", urls[0]))
	if s.Result != reloadRefused {
		t.Errorf("state %+v", s)
	}
	if code, _ := c.request(qwen); code != http.StatusOK {
		t.Errorf("after a failed change: %d", code)
	}
	resp, err := http.Get(c.AdminURL() + "/api/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var st admin.Status
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil || st.Reload.Result != reloadRefused || len(st.Reload.Problems) == 0 {
		t.Errorf("status says %+v, %v", st.Reload, err)
	}
}

func TestAChangeThatBreaksRequestsIsRolledBack(t *testing.T) {
	urls := engines(t, 1)
	c := follow(t, head+poolYAML("a", qwen, "", urls[0]), Options{})
	for range 10 {
		if code, body := c.request(qwen); code != http.StatusOK {
			t.Fatal(code, body)
		}
	}
	// An address where nobody listens: valid, and wrong.
	if s := c.reload(head + poolYAML("a", qwen, "", "http://127.0.0.1:1")); s.Result != reloadApplied {
		t.Fatalf("%+v", s)
	}
	until(t, "the old endpoint to leave", func() bool { return c.endpointNames() == "http://127.0.0.1:1" })
	for range 20 {
		c.request(qwen)
	}
	c.await("the rollback", func(s admin.ReloadState) bool { return s.Result == reloadRolledBack })
	if code, body := c.request(qwen); code != http.StatusOK {
		t.Errorf("after the rollback: %d %s", code, body)
	}
}

// adminCall sends a request to the admin port.
func (c *changing) adminCall(method, path, token, body string) (int, string) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.AdminURL()+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(resp.Body) // an error shows in the body
	return resp.StatusCode, string(raw)
}

func TestEndpointsOverTheAPIUnderLoad(t *testing.T) {
	urls := engines(t, 3)
	c := follow(t, head+poolYAML("a", qwen, "api: true,", urls[0]), Options{RegisterToken: "reg"})
	stop := c.load(qwen)
	call := func(want int, method, path, token, body string) {
		t.Helper()
		if code, text := c.adminCall(method, path, token, body); code != want {
			t.Errorf("%s %s: %d %s, want %d", method, path, code, text, want)
		}
	}
	call(200, "POST", "/api/endpoints", "", fmt.Sprintf(`{"pool":"a","name":"second","url":%q}`, urls[1]))
	until(t, "the second endpoint", func() bool { return strings.Contains(c.endpointNames(), urls[1]) })
	call(200, "POST", "/api/register", "reg", fmt.Sprintf(`{"pool":"a","name":"third","url":%q,"lease":"300ms"}`, urls[2]))
	until(t, "the third endpoint", func() bool { return strings.Contains(c.endpointNames(), urls[2]) })
	until(t, "its lease to run out", func() bool { return !strings.Contains(c.endpointNames(), urls[2]) })
	call(200, "POST", "/api/endpoints/a/second/drain", "", "")
	call(200, "DELETE", "/api/endpoints/a/second/drain", "", "")
	call(200, "DELETE", "/api/endpoints/a/second?drain=2s", "", "")
	until(t, "the second to leave", func() bool { return !strings.Contains(c.endpointNames(), urls[1]) })
	good, bad := stop()
	if len(bad) > 0 || good == 0 {
		t.Errorf("%d went well, %d failed: %.300v", good, len(bad), bad)
	}
	call(401, "POST", "/api/register", "wrong", "{}")
	call(400, "POST", "/api/endpoints", "", `{"pool":"a","url":"nowhere"}`)
	call(400, "POST", "/api/endpoints", "", `{"pool":"b","url":"http://x"}`)
	call(400, "POST", "/api/endpoints", "", `{"pool":"a","url":"http://x","lease":"soon"}`)
	call(400, "POST", "/api/endpoints", "", `{"pool":"a","speed":1}`)
	call(404, "DELETE", "/api/endpoints/a/nobody", "", "")
	call(404, "POST", "/api/endpoints/a/nobody/drain", "", "")
	call(400, "DELETE", "/api/endpoints/a/second?drain=x", "", "")
}

// certificate writes a self-signed certificate for 127.0.0.1 with a serial
// number, and returns it in a pool.
func certificate(t *testing.T, certFile, keyFile string, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	rawKey, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: rawKey})
	if err := errors.Join(os.WriteFile(keyFile, keyPEM, 0o600), os.WriteFile(certFile, certPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	return roots
}

func TestCertificateIsReloadedAndClientsMustShowTheirs(t *testing.T) {
	dir := t.TempDir()
	cert, key, ca := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
	roots := certificate(t, cert, key, 1)
	certificate(t, ca, filepath.Join(dir, "ca.key"), 99)
	client, err := tls.LoadX509KeyPair(ca, filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	urls := engines(t, 1)
	c := follow(t, head+poolYAML("a", qwen, "", urls[0]), Options{TLS: TLS{Cert: cert, Key: key, ClientCA: ca}})
	serial := func(roots *x509.CertPool, certs ...tls.Certificate) (int64, error) {
		tr := &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: certs},
			ForceAttemptHTTP2: true, DisableKeepAlives: true,
		}
		resp, err := (&http.Client{Transport: tr}).Get(c.URL() + "/healthz")
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Errorf("spoke %s", resp.Proto)
		}
		return resp.TLS.PeerCertificates[0].SerialNumber.Int64(), nil
	}
	if n, err := serial(roots, client); n != 1 || err != nil {
		t.Fatalf("first certificate: %d %v", n, err)
	}
	if _, err := serial(roots); err == nil {
		t.Error("a client without a certificate was let in")
	}
	// A broken pair leaves the old one in service, a good one replaces it.
	if err := os.WriteFile(cert, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "the broken pair to be looked at", func() bool {
		if n, err := serial(roots, client); n != 1 || err != nil {
			t.Fatalf("with a broken file: %d %v", n, err)
		}
		return true
	})
	next := certificate(t, cert, key, 2)
	until(t, "the second certificate", func() bool { n, err := serial(next, client); return n == 2 && err == nil })
	for name, bad := range map[string]TLS{"no key": {Cert: cert}, "ca alone": {ClientCA: ca}, "no file": {Cert: "/x", Key: "/y"}, "bad ca": {Cert: cert, Key: key, ClientCA: key}} {
		if _, err := bad.config("--tls", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "--tls-") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	urls := engines(t, 1)
	c := follow(t, strings.Replace(head, "reload:", "limits: {maxConnections: 2}\nreload:", 1)+poolYAML("a", qwen, "", urls[0]), Options{})
	var open []io.Closer
	for range 2 {
		tr := &http.Transport{}
		resp, err := (&http.Client{Transport: tr}).Get(c.URL() + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body) // to the end, so that the connection stays
		resp.Body.Close()
		open = append(open, closer(tr.CloseIdleConnections))
	}
	third := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 200 * time.Millisecond}
	if _, err := third.Get(c.URL() + "/healthz"); err == nil {
		t.Error("a third connection of two was served")
	}
	open[0].Close()
	third.Timeout = 5 * time.Second
	resp, err := third.Get(c.URL() + "/healthz")
	if err != nil {
		t.Fatalf("a place was given back: %v", err)
	}
	var b bytes.Buffer
	_, _ = b.ReadFrom(resp.Body) // what is read does not matter
	resp.Body.Close()
	open[1].Close()
}

func TestRequestsAtOnceAreBounded(t *testing.T) {
	urls := engines(t, 1)
	c := follow(t, strings.Replace(head, "reload:", "limits: {maxRequests: 1}\nreload:", 1)+poolYAML("a", qwen, "", urls[0]), Options{})
	r, body := stream(t, c.App, 5000)
	if code, text := c.request(qwen); code != http.StatusServiceUnavailable || !strings.Contains(text, "crowded") {
		t.Errorf("a second request of one: %d %s", code, text)
	}
	body.Close()
	_, _ = io.Copy(io.Discard, r) // closed: nothing comes
	until(t, "the place to be given back", func() bool { code, _ := c.request(qwen); return code == http.StatusOK })
}

type closer func()

func (c closer) Close() error { c(); return nil }
