//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// The cores of the protocol: what is measured runs on the first, all that
// measures on the second.
const (
	subjectCore = 0
	driverCore  = 1
)

// process is one of the programs measured, alone on its core but for the others
// of its kind, which are idle while it is their neighbour's turn.
type process struct {
	name  string
	addr  string // public address
	admin string // base URL of the admin port; "" for none
	cmd   *exec.Cmd
	ended chan struct{}
}

// startProcess runs a program on the subjects' core and waits until it accepts
// connections. What it says goes to a file in dir: a log is written, and costs,
// as in service.
func startProcess(name, dir, addr string, args ...string) (*process, error) {
	out, err := os.Create(dir + "/" + name + ".log")
	if err != nil {
		return nil, err
	}
	defer out.Close()
	args = append([]string{"-c", strconv.Itoa(subjectCore)}, args...)
	p := &process{name: name, addr: addr, cmd: exec.Command("taskset", args...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is told by its log
		close(p.ended)
	}()
	if err := p.await(); err != nil {
		p.stop()
		log, _ := os.ReadFile(out.Name())
		return nil, fmt.Errorf("%w; it said: %s", err, bytes.TrimSpace(log))
	}
	return p, nil
}

// await waits for the process to accept connections.
func (p *process) await() error {
	for range 100 {
		c, err := net.DialTimeout("tcp", p.addr, time.Second)
		if err == nil {
			return c.Close()
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended at once", p.name)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not listen on %s", p.name, p.addr)
}

// stop ends the process, at last by force.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(3 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// cpu returns the processor time the process has used, all threads, from its
// POSIX clock: the figure of /proc/PID/stat, in nanoseconds instead of ticks.
func (p *process) cpu() time.Duration {
	const sched = 2 // CPUCLOCK_SCHED of the kernel's posix-timers
	clock := int32(^p.cmd.Process.Pid)<<3 | sched
	var ts syscall.Timespec
	// There is no wrapper without another module.
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&ts)), 0)
	if errno != 0 {
		return 0
	}
	return time.Duration(ts.Nano())
}

// rss returns the resident memory in bytes.
func (p *process) rss() (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb * 1024, err
		}
	}
	return 0, errors.New("no VmRSS")
}

// mallocs returns how many objects a Go process with an admin port has
// allocated. The profile's page says it exactly, where the metrics page leaves
// out what the processors have not yet reported.
func (p *process) mallocs(ctx context.Context) (float64, error) {
	page, err := p.ask(ctx, "/debug/pprof/allocs?debug=1")
	if err != nil {
		return 0, err
	}
	defer page.Close()
	for s := bufio.NewScanner(page); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "# Mallocs = "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, errors.New("the profile does not tell Mallocs")
}

// profile writes a profile of the next span to path.
func (p *process) profile(ctx context.Context, kind, path string, span time.Duration) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	page, err := p.ask(ctx, fmt.Sprintf("/debug/pprof/%s?seconds=%.0f", kind, span.Seconds()))
	if err != nil {
		return err
	}
	defer page.Close()
	_, err = io.Copy(f, page)
	return err
}

// ask gets a page of the admin port.
func (p *process) ask(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.admin+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// freeAddr returns a loopback address nobody listens on.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// ticks is what the kernel has accounted to one core.
type ticks struct{ busy, all float64 }

// coreTicks reads a core's line of /proc/stat. Time stolen by the host counts
// as busy: nobody here could use it.
func coreTicks(core int) ticks {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return ticks{}
	}
	var t ticks
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 9 || f[0] != fmt.Sprintf("cpu%d", core) {
			continue
		}
		for i, s := range f[1:9] { // user nice system idle iowait irq softirq steal
			v, _ := strconv.ParseFloat(s, 64)
			t.all += v
			if i != 3 && i != 4 {
				t.busy += v
			}
		}
	}
	return t
}

// window measures what a process and the cores do between two instants.
type window struct {
	p               *process
	begun           time.Time
	cpu             time.Duration
	subject, driver ticks
}

func openWindow(p *process) window {
	w := window{p: p, begun: time.Now(), subject: coreTicks(subjectCore), driver: coreTicks(driverCore)}
	if p != nil {
		w.cpu = p.cpu()
	}
	return w
}

// usage is what a window saw.
type usage struct {
	cpu     float64 // seconds of the process
	wall    float64 // seconds
	driver  float64 // busy share of the core that measures
	foreign float64 // share of the subjects' core that others took
}

func (w window) close() usage {
	var u usage
	if w.p != nil {
		u.cpu = (w.p.cpu() - w.cpu).Seconds()
	}
	u.wall = time.Since(w.begun).Seconds()
	share := func(a, b ticks) float64 {
		if b.all == a.all {
			return 0
		}
		return (b.busy - a.busy) / (b.all - a.all)
	}
	u.driver = share(w.driver, coreTicks(driverCore))
	u.foreign = max(share(w.subject, coreTicks(subjectCore))-u.cpu/u.wall, 0)
	return u
}
