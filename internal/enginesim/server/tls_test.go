package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// selfSigned is a certificate for 127.0.0.1 and the pool that trusts it.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "engine"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// completion asks for a few tokens over a transport of its own and returns the
// protocol that was spoken.
func completion(t *testing.T, url string, transport *http.Transport) string {
	t.Helper()
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	resp, err := client.Post(url+"/v1/completions", "application/json", strings.NewReader(`{"prompt":"x","max_tokens":3,"ignore_eos":true,"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%d %v", resp.StatusCode, err)
	}
	if evs := events(t, raw); len(evs) != 4 {
		t.Errorf("%d events", len(evs))
	}
	return resp.Proto
}

func TestTLS(t *testing.T) {
	certificate, pool := selfSigned(t)
	n, err := Listen("127.0.0.1:0", Config{Options: fast, TLS: &tls.Config{Certificates: []tls.Certificate{certificate}}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if !strings.HasPrefix(n.URL(), "https://127.0.0.1:") {
		t.Errorf("URL %s", n.URL())
	}
	for _, h2 := range []bool{false, true} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: h2}
		if got, want := completion(t, n.URL(), tr), map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[h2]; got != want {
			t.Errorf("spoke %s, want %s", got, want)
		}
	}
	if resp, err := http.Get(n.URL() + "/health"); err == nil {
		resp.Body.Close()
		t.Error("a stranger's certificate is trusted")
	}
}

func TestHTTP2WithoutTLS(t *testing.T) {
	n := listen(t, fast)
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	if got := completion(t, n.URL(), &http.Transport{Protocols: &h2c}); got != "HTTP/2.0" {
		t.Errorf("spoke %s", got)
	}
	// A fault that breaks off breaks one stream off.
	if err := n.Server.SetFault(Fault{Kind: "cut", Tokens: 1, Count: 1}); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{Protocols: &h2c}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	resp, err := client.Post(n.URL()+"/v1/completions", "application/json", strings.NewReader(`{"prompt":"x","max_tokens":9,"ignore_eos":true,"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if raw, err := io.ReadAll(resp.Body); err == nil || len(raw) == 0 {
		t.Errorf("cut: %v after %q", err, raw)
	}
	if resp, err := client.Get(n.URL() + "/health"); err != nil || resp.StatusCode != 200 {
		t.Errorf("after the cut: %v", err)
	} else {
		resp.Body.Close()
	}
	o := fast
	o.HTTP1Only = true
	old := listen(t, o)
	if got := completion(t, old.URL(), &http.Transport{}); got != "HTTP/1.1" {
		t.Errorf("spoke %s", got)
	}
	if _, err := (&http.Client{Transport: transport}).Get(old.URL() + "/health"); err == nil {
		t.Error("an engine without HTTP/2 speaks it")
	}
}
