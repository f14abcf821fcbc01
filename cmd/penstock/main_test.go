package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// asPenstock makes the test binary run as penstock itself, so that tests can
// start and kill real processes.
const asPenstock = "PENSTOCK_TEST_RUN_AS_PENSTOCK"

func TestMain(m *testing.M) {
	if os.Getenv(asPenstock) != "" {
		os.Unsetenv(asPenstock)
		main()
	}
	os.Exit(m.Run())
}

// penstock runs a command line in this process and returns its exit code and
// output.
func penstock(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, streams{Out: &o, Err: &e})
	return code, o.String(), e.String()
}

// up starts `penstock up` in this process and returns its addresses. It is
// stopped, and must exit with 0, at the end of the test.
func up(t *testing.T, args ...string) (url, admin string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // t.Context ends before the clean-up that stops it
	r, w := io.Pipe()
	var errs bytes.Buffer
	done := make(chan int, 1)
	go func() {
		code := run(ctx, append([]string{"up", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"}, args...), streams{Out: w, Err: &errs})
		w.Close()
		done <- code
	}()
	t.Cleanup(func() {
		cancel()
		go io.Copy(io.Discard, r)
		if code := <-done; code != 0 {
			t.Errorf("penstock up exited with %d: %s", code, errs.String())
		}
	})
	address := regexp.MustCompile(`^  (gateway|admin) +(http://\S+)$`)
	lines := bufio.NewScanner(r)
	for admin == "" && lines.Scan() {
		if m := address.FindStringSubmatch(lines.Text()); m != nil {
			if m[1] == "gateway" {
				url = m[2]
			} else {
				admin = m[2]
			}
		}
	}
	if admin == "" {
		t.Fatalf("penstock up told no addresses: %s", errs.String())
	}
	go io.Copy(io.Discard, r)
	return url, admin
}

// child starts penstock as a process of its own, killed at the end of the test.
func child(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asPenstock+"=1")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone already
		_ = cmd.Wait()
	})
	return cmd
}

// freePorts returns n loopback addresses that nobody listens on just now.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// eventually waits until ok, and fails the test after limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
	return time.Since(start)
}

func TestCommandLineErrors(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "Start with: penstock up"},
		{[]string{"bench", "--help"}, 0, "Examples:"},
		{[]string{"version"}, 0, "penstock "},
		{[]string{"fly"}, 2, "unexpected argument fly"},
		{[]string{"up", "--replicas", "0"}, 1, "--replicas must be between 1 and 256"},
		{[]string{"up", "--accelerator", "abacus"}, 1, "accelerator"},
		{[]string{"up", "--replicas", "2", "--prefill", "1", "--decode", "1"}, 1, "give --replicas, or --prefill and --decode, not both"},
		{[]string{"up", "--endpoints", "http://127.0.0.1:1", "--prefill", "1"}, 1, "--prefill is about simulated engines, and --endpoints names real ones"},
		{[]string{"up", "--config", "../../examples/fleet.yaml", "--decode", "1"}, 1, "--decode is about simulated engines, and --config names real ones"},
		{[]string{"up", "--config", "../../examples/fleet.yaml", "--encode", "1"}, 1, "--encode is about"},
		{[]string{"up", "--prefill", "1", "--decode", "1", "--connector", "moriio"}, 1, `no simulated engine speaks "moriio": name one of nixl, nixl-push, mooncake, shared, offload, sglang`},
		{[]string{"up", "--connector", "sglang"}, 1, "engines of SGLang do one leg of a request: give --prefill N --decode N"},
		{[]string{"up", "--prefill", "1", "--decode", "1", "--policy", "p2c", "--listen", "127.0.0.1:99999"}, 1, "--policy p2c never splits a request"},
		{[]string{"up", "--help"}, 0, "shared, offload, sglang (default nixl"},
		{[]string{"engine", "--help"}, 0, "shared, offload, sglang"},
		{[]string{"up", "--policy", "best"}, 1, `no policy "best"; known:`},
		{[]string{"up", "--listen", "127.0.0.1:99999"}, 1, "--listen"},
		{[]string{"up", "--admin-listen", "0.0.0.0:0"}, 1, "set --admin-token"},
		{[]string{"gateway"}, 1, "nothing to serve"},
		{[]string{"gateway", "--endpoints", "here"}, 1, "must start with http://"},
		{[]string{"gateway", "--config", "main.go", "--endpoints", "http://a"}, 1, "not both"},
		{[]string{"gateway", "--config", "../../internal/config/testdata/values.bad.yaml"}, 1, "pools[0].retry.share"},
		{[]string{"check"}, 1, "nothing to check"},
		{[]string{"check", "../../internal/config/testdata/full.good.yaml"}, 0, "2 pools, 3 endpoints"},
		{[]string{"check", "../../internal/config/testdata/types.bad.yaml"}, 1, "pools[0].colour: unknown field"},
		{[]string{"check", "../../examples/fleet.yaml", "--tests", "../../examples/policy-tests.yaml"}, 0, "ok    a full pool makes requests wait"},
		{[]string{"check", "../../internal/config/testdata/full.good.yaml", "--tests", "../../examples/policy-tests.yaml"}, 1, "4 of 4 policy tests failed"},
		{[]string{"check", "../../examples/fleet.yaml", "--tests", "../../examples/fleet.yaml"}, 1, "pools: unknown field; known here: tests"},
		{[]string{"check", "--tests", "../../examples/policy-tests.yaml"}, 1, "needs the Fleet file"},
		{[]string{"check", "--journal", "main.go"}, 1, "journal is damaged"},
		{[]string{"explain", "x", "--admin", "http://127.0.0.1:1"}, 1, "no gateway answers at http://127.0.0.1:1"},
		{[]string{"bench", "--url", "http://192.0.2.1"}, 1, "--allow-remote"},
		{[]string{"engine", "--tp", "3"}, 1, "tp"},
	} {
		code, out, errs := penstock(t, c.args...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%v: exit %d, want %d with %q:\n%s%s", c.args, code, c.code, c.want, out, errs)
		}
	}
}

func TestUpExplainsARequestAndItsJournalReplays(t *testing.T) {
	journal := t.TempDir() + "/j"
	t.Run("serve", func(t *testing.T) {
		url, admin := up(t, "--speedup", "20", "--journal", journal, "--no-access-log")
		code, out, errs := penstock(t, "bench", "--url", url, "--requests", "20", "--rate", "100", "--input-len", "300", "--output-len", "20")
		if code != 0 || !strings.Contains(out, "20 completed, 0 failed, 0 corrupted") {
			t.Fatalf("bench: %d\n%s%s", code, out, errs)
		}
		code, out, _ = penstock(t, "explain", "last", "--admin", admin)
		if code != 0 || !regexp.MustCompile(`predictive chose sim-\d over sim-\d`).MatchString(out) || !strings.Contains(out, "predicted TTFT") {
			t.Errorf("explain names no runner-up:\n%s", out)
		}
		if _, out, _ := penstock(t, "explain", "last", "--json", "--admin", admin); !strings.Contains(out, `"runnerUp"`) {
			t.Errorf("explain --json:\n%s", out)
		}
		if _, out, _ := penstock(t, "status", "--admin", admin); !strings.Contains(out, "20 requests: 20 done, 0 in flight") {
			t.Errorf("status:\n%s", out)
		}
	})
	code, out, errs := penstock(t, "check", "--journal", journal)
	if code != 0 || !strings.Contains(out, "20 requests (20 done") {
		t.Errorf("the journal does not replay: %d\n%s%s", code, out, errs)
	}
}

// TestEndpointsAreAskedForTheirModels runs a gateway with nothing but URLs, one
// of which answers only later.
func TestEndpointsAreAskedForTheirModels(t *testing.T) {
	addrs := freePorts(t, 2)
	child(t, "engine", "--listen", addrs[0], "--speedup", "50")
	url, admin := up(t, "--endpoints", fmt.Sprintf("http://%s,http://%s", addrs[0], addrs[1]), "--no-access-log")
	endpoints := func() string {
		_, out, _ := penstock(t, "status", "--admin", admin)
		return out
	}
	eventually(t, 20*time.Second, "first endpoint found", func() bool { return strings.Contains(endpoints(), addrs[0]) })
	child(t, "engine", "--listen", addrs[1], "--speedup", "50")
	eventually(t, 30*time.Second, "second endpoint found", func() bool { return strings.Contains(endpoints(), addrs[1]) })
	code, out, errs := penstock(t, "bench", "--url", url, "--requests", "10", "--rate", "50", "--input-len", "100", "--output-len", "5")
	if code != 0 {
		t.Errorf("bench: %d\n%s%s", code, out, errs)
	}
}
