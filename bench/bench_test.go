// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func options() Options {
	return Options{EBPF: "both", Docker: "off", Runs: 1, Duration: time.Second}
}

func TestCheck(t *testing.T) {
	require.NoError(t, options().Check())
	for _, tt := range []struct {
		change func(*Options)
		want   string
	}{
		{func(o *Options) { o.Modes = []string{"veth", "ovs"} }, `--modes: unknown mode "ovs": choose among veth, bridge, macvlan, ipvlan, ipvlan-l3, netkit`},
		{func(o *Options) { o.EBPF = "yes" }, `--ebpf "yes": choose among both, on, off`},
		{func(o *Options) { o.Docker = "on" }, `--docker "on": choose among auto, off`},
		{func(o *Options) { o.Runs = 0 }, `--runs 0: choose 1 to 1000`},
		{func(o *Options) { o.Runs = 1001 }, `--runs 1001: choose 1 to 1000`},
		{func(o *Options) { o.Duration = 0 }, `--duration 0s: choose whole seconds, 1s to 1m0s`},
		{func(o *Options) { o.Duration = 1500 * time.Millisecond }, `--duration 1.5s: choose whole seconds, 1s to 1m0s`},
		{func(o *Options) { o.Duration = time.Hour }, `--duration 1h0m0s: choose whole seconds, 1s to 1m0s`},
		{func(o *Options) { o.Services = -1 }, `--services -1: choose 2 to 20000, or 0 to leave that out`},
		{func(o *Options) { o.Services = 1 }, `--services 1: choose 2 to 20000, or 0 to leave that out`},
		{func(o *Options) { o.Services = 20_001 }, `--services 20001: choose 2 to 20000, or 0 to leave that out`},
		{func(o *Options) { o.Chart = "a.pdf" }, `--chart a.pdf: its name must end in .svg or .png`},
		{func(o *Options) { o.Chart = "/no/such/a.svg" }, `--chart /no/such/a.svg: the directory /no/such cannot be written to: no such file or directory`},
	} {
		o := options()
		tt.change(&o)
		require.ErrorContains(t, o.Check(), tt.want)
	}
	directory := filepath.Join(t.TempDir(), "a.svg")
	require.NoError(t, os.Mkdir(directory, 0o700))
	o := options()
	o.Chart = directory
	require.ErrorContains(t, o.Check(), "it is a directory")
}

func TestRunNeedsIperf3(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Run(context.Background(), options(), nil)
	require.EqualError(t, err, "iperf3 is missing, which carries the streams: `apt install iperf3`")
}

func TestHelperNeedsAPart(t *testing.T) {
	for _, args := range [][]string{nil, {"rest"}, {helperServe}, {helperTurn, "rr"}} {
		err := Helper(context.Background(), args, strings.NewReader(""), nil)
		require.ErrorContains(t, err, "`mustang bench`")
	}
}

func TestParseBusy(t *testing.T) {
	busy, err := parseBusy("cpu  100 20 30 99999 8888 1 2 40 500 600\ncpu0 1 2 3\n")
	require.NoError(t, err)
	require.InDelta(t, 1.93, busy, 1e-9, "user, nice, system, irq, softirq, steal")
	for _, bad := range []string{"", "intr 1 2", "cpu 1 2 3", "cpu a 2 3 4 5 6 7 8"} {
		_, err := parseBusy(bad)
		require.ErrorContains(t, err, "read the CPU time", bad)
	}
}

// steps counts what a Progress is told.
type steps struct{ told []string }

func (s *steps) Begin(n int)      { s.told = append(s.told, "begin "+strings.Repeat("|", n)) }
func (s *steps) Step(what string) { s.told = append(s.told, what) }
func (s *steps) End()             {}

func TestCollect(t *testing.T) {
	var p steps
	veth := side{Mode: "veth", Path: pathDirect}
	lines := func(events ...event) *strings.Reader {
		var b strings.Builder
		for _, e := range events {
			require.NoError(t, json.NewEncoder(&b).Encode(e))
		}
		return strings.NewReader(b.String())
	}
	values, notes, err := collect(lines(
		event{Note: "slow"}, event{Steps: 2}, event{Step: "veth direct: stream"},
		event{Samples: []sample{{veth, streamRate, 7}}}, event{Samples: []sample{{veth, streamRate, 8}}}, event{Done: true},
	), &p)
	require.NoError(t, err)
	require.Equal(t, series{veth: {streamRate: {7, 8}}}, values)
	require.Equal(t, []string{"slow"}, notes)
	require.Equal(t, []string{"begin ||", "veth direct: stream"}, p.told)

	_, _, err = collect(lines(event{Samples: []sample{{veth, streamRate, 7}}}), &p)
	require.EqualError(t, err, "the measurement broke off")
	_, _, err = collect(lines(event{Error: "no route"}, event{Done: true}), &p)
	require.EqualError(t, err, "no route")
	_, _, err = collect(strings.NewReader("panic:\n"), &p)
	require.ErrorContains(t, err, "read what was measured")
}

func TestRoundsGoForthAndBack(t *testing.T) {
	w := &work{job: job{Options: Options{Runs: 2, Services: 9}}}
	prepare := func(string, int) error { return nil }
	for _, mode := range []string{"veth", "bridge"} {
		w.pairs = append(w.pairs, &pair{mode: mode, ebpf: true, vip: plainVIP, prepare: prepare})
	}
	var got []string
	for _, task := range w.tasks() {
		if task.name == "TCP_CRR" {
			got = append(got, task.String())
		}
	}
	require.Equal(t, []string{
		"veth+eBPF direct", "veth+eBPF vip", "bridge+eBPF direct", "bridge+eBPF vip",
		"bridge+eBPF vip", "bridge+eBPF direct", "veth+eBPF vip", "veth+eBPF direct",
		"veth+eBPF vip beside 1 services", "veth+eBPF vip beside 9 services",
		"bridge+eBPF vip beside 1 services", "bridge+eBPF vip beside 9 services",
		"veth+eBPF vip beside 9 services", "veth+eBPF vip beside 1 services",
		"bridge+eBPF vip beside 9 services", "bridge+eBPF vip beside 1 services",
	}, got)
}

func TestARunThatFailedIsRepeated(t *testing.T) {
	for failures, want := range map[int]string{0: "", 2: "", 3: "stuck"} {
		var told bytes.Buffer
		w := &work{out: json.NewEncoder(&told)}
		left := failures
		err := w.run(task{&pair{}, side{Mode: "veth", Path: pathDirect}, "stream", func(*meters, *pair, string) (measured, error) {
			if left > 0 {
				left--
				return nil, errors.New("stuck")
			}
			return measured{streamRate: 7}, nil
		}})
		require.Equal(t, min(failures, retries), strings.Count(told.String(), "veth direct: stream was repeated: stuck"))
		if want != "" {
			require.EqualError(t, err, want)
			require.NotContains(t, told.String(), "Samples")
			continue
		}
		require.NoError(t, err)
		require.Equal(t, 1, strings.Count(told.String(), `"Value":7`))
	}
}
