package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// collect runs a source and keeps what it emits, as text.
type collect struct {
	mu  sync.Mutex
	got []string
}

func (c *collect) emit(list []Endpoint, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.got = append(c.got, "error: "+err.Error())
		return
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name)
	}
	c.got = append(c.got, strings.Join(names, " "))
}

func (c *collect) want(t *testing.T, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.got) != len(want) {
		t.Fatalf("emitted %q, want %q", c.got, want)
	}
	for i := range want {
		if !strings.HasPrefix(c.got[i], want[i]) {
			t.Errorf("emitted %q, want %q", c.got[i], want[i])
		}
	}
}

func TestFileIsReadAgainWhenItChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.yaml")
	write := func(s string) {
		// By rename, as editors and ConfigMaps do.
		if err := errors.Join(os.WriteFile(path+".new", []byte(s), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var c collect
		go File{Path: path, Every: time.Second}.Run(ctx, c.emit)
		pass := func() { time.Sleep(2100 * time.Millisecond); synctest.Wait() }
		pass()
		write("endpoints:\n- url: http://a:1\n- url: http://b:1\n  name: second\n")
		pass()
		write("endpoints:\n- url: http://a:1\n- urll: http://b:1\n")
		pass()
		write("endpoints:\n- url: b\n- url: http://a:1\n- url: http://a:1\n")
		pass()
		write("endpoints: []\n")
		pass()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		pass()
		c.want(t, "error: open", "a:1 second", "error: not a list", "error: endpoints[0].url", "", "error: open")
	})
}

type fakeResolver struct {
	mu    sync.Mutex
	addrs []string
	srv   []*net.SRV
	err   error
}

func (f *fakeResolver) set(err error, addrs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addrs, f.err = addrs, err
}

func (f *fakeResolver) LookupHost(context.Context, string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addrs, f.err
}

func (f *fakeResolver) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return "", f.srv, f.err
}

func TestDNSIsResolvedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := &fakeResolver{addrs: []string{"10.0.0.2", "10.0.0.1"}}
		var c collect
		go DNS{Host: "engines", Port: 8000, Scheme: "http", Every: 10 * time.Second, Resolver: r}.Run(ctx, c.emit)
		pass := func() { time.Sleep(21 * time.Second); synctest.Wait() }
		pass()
		r.set(nil, "10.0.0.1", "10.0.0.2", "::1")
		pass()
		r.set(errors.New("server misbehaving"))
		pass()
		r.set(nil, "10.0.0.1", "10.0.0.2", "::1") // the same as before the failure: nothing to tell
		pass()
		r.set(&net.DNSError{IsNotFound: true})
		pass()
		c.want(t, "10.0.0.1:8000 10.0.0.2:8000", "10.0.0.1:8000 10.0.0.2:8000 [::1]:8000", "error: resolve engines", "")
	})
}

func TestDNSServiceRecords(t *testing.T) {
	r := &fakeResolver{srv: []*net.SRV{{Target: "b.example.", Port: 2}, {Target: "a.example.", Port: 1}}}
	list, err := DNS{Host: "_x._tcp.example", Scheme: "https", SRV: true, Every: time.Second, Resolver: r}.resolve(t.Context())
	want := []Endpoint{{Name: "a.example:1", URL: "https://a.example:1"}, {Name: "b.example:2", URL: "https://b.example:2"}}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("%v %v", list, err)
	}
}

func TestRegistryLeasesRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := NewRegistry()
		var c collect
		go r.Run(ctx, c.emit)
		put := func(name string, lease time.Duration) {
			if _, err := r.Put(Endpoint{Name: name, URL: "http://" + name}, lease); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		put("a", 10*time.Second)
		put("b", 0)
		time.Sleep(8 * time.Second)
		put("a", 10*time.Second) // renewed: nothing to tell
		time.Sleep(9 * time.Second)
		synctest.Wait()
		time.Sleep(2 * time.Second) // 11 s after the renewal
		synctest.Wait()
		if err := r.Delete("b"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c.want(t, "a", "a b", "b", "")
		for _, e := range []Endpoint{{URL: "nowhere"}, {Name: "x"}} {
			if _, err := r.Put(e, 0); err == nil {
				t.Errorf("took %+v", e)
			}
		}
		if _, err := r.Put(Endpoint{URL: "http://x"}, time.Hour); err == nil {
			t.Error("took a lease of an hour")
		}
		if err := r.Delete("b"); !errors.Is(err, ErrUnknownEndpoint) {
			t.Errorf("second delete: %v", err)
		}
	})
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte("endpoints:\n- url: http://a:1\n"))
	f.Add([]byte("endpoints: {a: 1}"))
	f.Fuzz(func(_ *testing.T, raw []byte) { _, _ = ParseFile(raw) })
}

// TestRanksTakeTheirPlaces: a list in which a rank would be what is listed already is
// refused, as long as the ranks may be at ports of their own.
func TestRanksTakeTheirPlaces(t *testing.T) {
	for list, want := range map[string]string{
		"[{url: 'http://a:1', ranks: 3}, {url: 'http://a:4'}]":                                      "",
		"[{url: 'http://a:1', ranks: 3, rankMode: header}, {url: 'http://a:2'}]":                    "",
		"[{url: 'http://a:1', ranks: 3}, {url: 'http://a:3'}]":                                      "endpoints[1]: \"a:3\" (http://a:3) is listed twice",
		"[{url: 'http://a:2'}, {url: 'http://a:1', ranks: 3, rankMode: port}]":                      "is listed twice",
		"[{url: 'http://a:1', ranks: 2, name: x}, {url: 'http://b:1', name: x/0}]":                  "is listed twice",
		"[{url: 'http://a:1', ranks: 9999}]":                                                        "endpoints[0]: ranks must be between 1 and 1024",
		"[{url: 'http://a:1', rankMode: port}]":                                                     "says nothing without ranks",
		"[{url: 'http://a:1', ranks: 2, rankMode: header}, {url: 'http://a:1', ranks: 2, name: b}]": "is listed twice",
	} {
		_, err := ParseFile([]byte("endpoints: " + list))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", list, err, want)
		}
	}
}

func TestSpread(t *testing.T) {
	e := Endpoint{Name: "e", URL: "http://a:8000", Variant: "v", Events: "tcp://a:5557", Ranks: 2}
	at := func(rank int, url string, shared bool, mode string) Endpoint {
		o := e
		o.Name, o.URL, o.Rank, o.Shared, o.RankMode = fmt.Sprintf("e/%d", rank), url, rank, shared, mode
		return o
	}
	for mode, want := range map[string][]Endpoint{
		"port":   {at(0, "http://a:8000", false, "port"), at(1, "http://a:8001", false, "port")},
		"header": {at(0, "http://a:8000", true, "header"), at(1, "http://a:8000", true, "header")},
	} {
		if got, err := e.Spread(mode); err != nil || !slices.Equal(got, want) {
			t.Errorf("by %s: %+v, %v", mode, got, err)
		}
	}
}
