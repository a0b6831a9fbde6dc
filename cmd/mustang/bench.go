// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/mustang-net/mustang/bench"
	"github.com/mustang-net/mustang/bench/stats"
)

func benchCommand(e env) *cli.Command {
	return verb{
		name: "bench", usage: "measure which mode is fastest on this machine",
		about: "Connects pairs of sandboxes in every mode that the kernel offers, plain and with eBPF, and measures\n" +
			"between them, directly and by a virtual IP: TCP streams (iperf3, cubic), latency of TCP and UDP turns,\n" +
			"connections per second, and CPU time per GB, which is that of the whole machine (/proc/stat without idle).\n" +
			"Plain virtual IPs are an nftables rule each. Sides take turns, forth and back, so that a drift meets all\n" +
			"alike; figures are medians with their 95 % interval, for which it takes six runs.\n" +
			"Turns and connections have client and server on one CPU: on two they would measure how fast an idle CPU\n" +
			"wakes. Streams have all. Everything happens in namespaces of its own and is gone afterwards; Docker's\n" +
			"own networks, where an engine answers, are made and removed. Each mode takes about two minutes. Run it on\n" +
			"an idle machine, and stop it with Ctrl-C: nothing is left.\n\n" +
			"Example, the two simplest modes, with a chart:\n\n" +
			"   mustang bench --modes veth,bridge --chart bench.svg",
		flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "modes", Usage: "measure only `MODE,…`: " + strings.Join(bench.Modes(), ", ")},
			&cli.StringFlag{Name: "ebpf", Value: "both", Usage: "measure `WHAT`: mustang (on), plain devices (off) or both"},
			&cli.IntFlag{Name: "runs", Value: stats.SureRuns, Usage: "take `N` runs of each figure"},
			&cli.DurationFlag{Name: "duration", Value: time.Second, Usage: "let a run last `TIME`, in whole seconds"},
			&cli.IntFlag{Name: "services", Usage: "measure connections beside `N` services, too, and beside as many nftables and iptables rules"},
			&cli.StringFlag{Name: "docker", Value: "auto", Usage: "measure Docker's own networks `WHEN` an engine answers (auto), or not (off)"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: benchForms[0], Usage: "print as `FORM`: " + strings.Join(benchForms, ", ")},
			&cli.StringFlag{Name: "chart", Usage: "draw a chart into `FILE`, which ends in .svg or .png"},
			&cli.BoolFlag{Name: "no-progress", Usage: "show no progress bar on the terminal", DisableDefaultText: true},
		},
		run: func(c *cli.Context) error { return runBench(c, e) },
	}.command()
}

var benchForms = []string{"table", "json"}

func runBench(c *cli.Context, e env) error {
	o := bench.Options{
		Modes: c.StringSlice("modes"), EBPF: c.String("ebpf"), Runs: c.Int("runs"), Duration: c.Duration("duration"),
		Services: c.Int("services"), Docker: c.String("docker"), Chart: c.String("chart"),
	}
	form := c.String("output")
	if !slices.Contains(benchForms, form) {
		return usagef(c, "--output %q: choose among %s", form, strings.Join(benchForms, ", "))
	}
	if err := o.Check(); err != nil {
		return usagef(c, "%w", err)
	}
	cfg, err := e.config(c)
	if err != nil {
		return err
	}
	if o.Socket = cfg.DockerSocket; o.Socket == "" {
		o.Docker = "off"
	}
	if e.euid != 0 {
		return errors.New("bench makes namespaces and devices: mustang needs root here: run it with sudo")
	}
	result, err := e.bench(c.Context, o, progress(c, e))
	if err != nil {
		return err
	}
	if o.Chart != "" {
		if err := result.WriteChart(o.Chart); err != nil {
			return err
		}
	}
	if form == "json" {
		for _, note := range result.Notes {
			fmt.Fprintf(e.stderr, "mustang: %s\n", note)
		}
		return output{form: form, w: e.stdout}.encode(result.Rows)
	}
	return result.WriteTable(e.stdout)
}

// bar shows the runs on a terminal.
type bar struct {
	*progressbar.ProgressBar
	begun bool
}

func progress(c *cli.Context, e env) bench.Progress {
	f, ok := e.stderr.(*os.File)
	shown := ok && term.IsTerminal(int(f.Fd())) && !c.Bool("no-progress")
	return &bar{ProgressBar: progressbar.NewOptions(1,
		progressbar.OptionSetWriter(e.stderr), progressbar.OptionSetVisibility(shown), progressbar.OptionClearOnFinish(),
		progressbar.OptionFullWidth(), progressbar.OptionShowCount(), progressbar.OptionSetPredictTime(true),
	)}
}

func (b *bar) Begin(steps int) { b.ChangeMax(steps) }

// Step counts the run before as done.
func (b *bar) Step(what string) {
	b.Describe(what)
	if b.begun {
		_ = b.Add(1) // a bar that cannot be drawn is no reason to stop
	}
	b.begun = true
}

func (b *bar) End() { _ = b.Clear() }

// helperCommand runs parts of the bench in copies of the program.
func helperCommand(e env) *cli.Command {
	h := verb{
		name: bench.HelperCommand, args: "PART", max: -1,
		run: func(c *cli.Context) error {
			return bench.Helper(c.Context, c.Args().Slice(), e.stdin, e.stdout)
		},
	}.command()
	h.Hidden = true
	return h
}
