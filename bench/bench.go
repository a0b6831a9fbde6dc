// SPDX-License-Identifier: Apache-2.0

// Package bench measures what a mode costs on this machine.
//
// [Run] starts a copy of the program in namespaces of its own, which builds a pair of sandboxes for each mode, plain
// and with eBPF, and measures between them; the undo of all that is the end of these namespaces.
package bench

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mustang-net/mustang/driver"
)

// Options are what is to be measured.
type Options struct {
	Modes    []string      // of Modes; empty: all that the kernel offers
	EBPF     string        // on, off or both
	Runs     int           // of each figure
	Duration time.Duration // of a run
	Services int           // that connection rates are measured beside; 0: not
	Docker   string        // auto or off
	Socket   string        // of the Docker engine
	Chart    string        // file, "" for none
}

// Bounds and choices of the options.
const (
	MaxRuns     = 1000
	MaxDuration = time.Minute
	MaxServices = 20_000 // the maps hold three times as many
)

// Choices of Options.EBPF and Options.Docker.
var (
	EBPFChoices   = []string{"both", "on", "off"}
	DockerChoices = []string{"auto", "off"}
)

// variants are the options of a network by mode of ours: the driver's modes, and ipvlan's second one.
func variants() map[string]map[string]string {
	all := map[string]map[string]string{}
	for _, mode := range driver.Modes() {
		all[mode] = map[string]string{"mode": mode}
	}
	if all[driver.ModeIPvlan] != nil {
		all[modeIPvlanL3] = map[string]string{"mode": driver.ModeIPvlan, "ipvlan_mode": "l3"}
	}
	return all
}

const modeIPvlanL3 = "ipvlan-l3"

// Modes lists what can be measured, in the driver's order.
func Modes() []string {
	var out []string
	for _, mode := range driver.Modes() {
		out = append(out, mode)
		if mode == driver.ModeIPvlan {
			out = append(out, modeIPvlanL3)
		}
	}
	return out
}

// Check refuses options that mean nothing, naming the flag.
func (o Options) Check() error {
	for _, mode := range o.Modes {
		if !slices.Contains(Modes(), mode) {
			return fmt.Errorf("--modes: unknown mode %q: choose among %s", mode, strings.Join(Modes(), ", "))
		}
	}
	if !slices.Contains(EBPFChoices, o.EBPF) {
		return fmt.Errorf("--ebpf %q: choose among %s", o.EBPF, strings.Join(EBPFChoices, ", "))
	}
	if !slices.Contains(DockerChoices, o.Docker) {
		return fmt.Errorf("--docker %q: choose among %s", o.Docker, strings.Join(DockerChoices, ", "))
	}
	if o.Runs < 1 || o.Runs > MaxRuns {
		return fmt.Errorf("--runs %d: choose 1 to %d", o.Runs, MaxRuns)
	}
	if o.Duration < time.Second || o.Duration > MaxDuration || o.Duration%time.Second != 0 {
		return fmt.Errorf("--duration %s: choose whole seconds, 1s to %s", o.Duration, MaxDuration)
	}
	if o.Services < 0 || o.Services == 1 || o.Services > MaxServices {
		return fmt.Errorf("--services %d: choose 2 to %d, or 0 to leave that out", o.Services, MaxServices)
	}
	return checkChart(o.Chart)
}

// Row is one figure: the median of the runs, with the interval that holds the true one with 95 % confidence. Fewer than
// six cannot give one: then it is the range of the values.
type Row struct {
	Mode string `json:"mode"`          // of Modes, loopback, or docker-DRIVER
	EBPF bool   `json:"ebpf"`          // by mustang, or plain
	Path string `json:"path"`          // direct or vip
	Via  string `json:"via,omitempty"` // what translates the VIP: ebpf, nftables, iptables

	Metric   string  `json:"metric"`
	Value    float64 `json:"value"`
	Unit     string  `json:"unit"`
	Runs     int     `json:"runs"`
	Low      float64 `json:"low"`
	High     float64 `json:"high"`
	Services int     `json:"services,omitempty"` // preloaded, with --services
	Against  string  `json:"against,omitempty"`  // what a ratio compares with
}

// Result is what was measured.
type Result struct {
	Rows  []Row
	Notes []string // what a reader has to know
}

// Paths between two sandboxes.
const (
	pathDirect = "direct"
	pathVIP    = "vip"
)

// What translates VIPs.
const (
	viaEBPF     = "ebpf"
	viaNftables = "nftables"
	viaIptables = "iptables"
)

// The metrics.
const (
	streamRate  = "tcp_stream"
	cpuPerGB    = "cpu_per_gb"
	tcpRate     = "tcp_rr"
	tcpP50      = "tcp_rr_p50"
	tcpP99      = "tcp_rr_p99"
	udpP50      = "udp_rr_p50"
	udpP99      = "udp_rr_p99"
	connectRate = "tcp_crr"
)

var units = map[string]string{
	streamRate: "Gbit/s", cpuPerGB: "CPU s/GB", tcpRate: "transactions/s", tcpP50: "us", tcpP99: "us",
	udpP50: "us", udpP99: "us", connectRate: "connections/s",
}

// ErrNoIperf3 says that the streams cannot be measured.
var ErrNoIperf3 = errors.New("iperf3 is missing, which carries the streams: `apt install iperf3`")
