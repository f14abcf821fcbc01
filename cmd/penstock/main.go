// Command penstock turns any number of inference engines into one service.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"
)

// cli is the whole command line.
type cli struct {
	Up        upCmd        `cmd:"" help:"Serve at once: a gateway before a simulated fleet, or before real engines with --config or --endpoints."`
	Gateway   gatewayCmd   `cmd:"" help:"Serve real engines."`
	Engine    engineCmd    `cmd:"" help:"Run one simulated engine alone."`
	Bench     benchCmd     `cmd:"" help:"Send load to any OpenAI-compatible server and measure it."`
	Profile   profileCmd   `cmd:"" help:"Find out how fast a live server is, and write it down for its siblings."`
	Simulate  simulateCmd  `cmd:"" help:"Compare policies in virtual time, with the code that serves live."`
	Size      sizeCmd      `cmd:"" help:"Find the layout of a number of devices, whole or xPyD, that serves most."`
	Explain   explainCmd   `cmd:"" help:"Tell why a request went where it did, and what happened."`
	Status    statusCmd    `cmd:"" help:"Show the pools and endpoints of a running gateway."`
	Top       topCmd       `cmd:"" help:"Watch a running gateway: endpoints, queues, and the KV moved between them."`
	Role      roleCmd      `cmd:"" help:"Give an endpoint another role, after what it has in its old one."`
	Transfers transfersCmd `cmd:"" help:"See the KV that engines hand over to each other, and give transfers up."`
	KV        kvCmd        `cmd:"" name:"kv" help:"See and manage what engines have cached."`
	Check     checkCmd     `cmd:"" help:"Check a Fleet file, or replay a journal and compare."`
	Version   versionCmd   `cmd:"" help:"Print the version."`
}

// streams are what a verb has of the process: where it writes, results to Out
// and everything else to Err, and the hang-up signals that ask it to reload.
type streams struct {
	Out, Err io.Writer
	Hangups  <-chan struct{}
}

// exitError carries an exit code without a message of its own: what there is to
// say has been said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	ctx, stop := interruptible()
	code := run(ctx, os.Args[1:], streams{Out: os.Stdout, Err: os.Stderr, Hangups: hangups()})
	stop()
	os.Exit(code)
}

// interruptible returns a context that the first SIGINT or SIGTERM ends; the
// second ends the process at once.
func interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(130) // as a shell reports an interrupted command
	}()
	return ctx, func() { signal.Stop(signals); cancel() }
}

// hangups returns a channel that receives when a SIGHUP comes; without it the
// signal would end the process.
func hangups() <-chan struct{} {
	signals, asked := make(chan os.Signal, 1), make(chan struct{}, 1)
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		for range signals {
			select {
			case asked <- struct{}{}:
			default: // one is waiting already
			}
		}
	}()
	return asked
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, s streams) int {
	var c cli
	exit := -1
	parser, err := kong.New(&c,
		kong.Name("penstock"),
		kong.Description("One binary that turns any number of inference engines into one service.\n\nStart with: penstock up"),
		kong.UsageOnError(),
		kong.DefaultEnvars("PENSTOCK"),
		helpVars(),
		kong.Writers(s.Out, s.Err),
		kong.Exit(func(code int) { exit = code; panic(exitError(code)) }),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(s),
	)
	if err != nil {
		// A mistake in the flag definitions, found by the first run of any test.
		panic(err)
	}
	kctx, err := parse(parser, args, &exit)
	switch {
	case exit >= 0:
		return exit
	case err != nil:
		fmt.Fprintf(s.Err, "penstock: %v\n", err)
		return 2
	}
	if err := kctx.Run(); err != nil {
		if code, ok := errors.AsType[exitError](err); ok {
			return int(code)
		}
		fmt.Fprintf(s.Err, "penstock: %v\n", err)
		return 1
	}
	return 0
}

// parse parses args; --help ends it early through exit.
func parse(parser *kong.Kong, args []string, exit *int) (kctx *kong.Context, err error) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(exitError); !ok || *exit < 0 {
				panic(p)
			}
		}
	}()
	return parser.Parse(args)
}

type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(s streams) error {
	fmt.Fprintln(s.Out, "penstock", version())
	return nil
}

// version is what the build knows of its source.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	return v
}
