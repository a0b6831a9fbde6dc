// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/api/apitest"
	"github.com/mustang-net/mustang/bench"
	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/config"
	"github.com/mustang-net/mustang/drift"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/monitor"
	"github.com/mustang-net/mustang/service"
)

// opener makes what a script's commands talk to, for the script's own fake.
type opener func(te *testscript.Env, fake *apitest.Host) func() (api.Host, error)

// Every scenario runs twice, and has to read the same whether a daemon answers or not.
func TestScriptsWithoutDaemon(t *testing.T) {
	scripts(t, func(_ *testscript.Env, fake *apitest.Host) func() (api.Host, error) {
		return func() (api.Host, error) { return fake, nil }
	})
}

func TestScriptsThroughTheSocket(t *testing.T) {
	scripts(t, func(te *testscript.Env, fake *apitest.Host) func() (api.Host, error) {
		dir, err := os.MkdirTemp("", "mst") // $WORK may be too long for a socket
		if err != nil {
			return func() (api.Host, error) { return nil, err }
		}
		path := filepath.Join(dir, "mustang.sock")
		l, err := api.Listen(path)
		if err != nil {
			return func() (api.Host, error) { return nil, err }
		}
		log := logrus.New()
		log.SetOutput(io.Discard)
		ctx, stop := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- api.Serve(ctx, l, fake, log, nil) }()
		te.Defer(func() {
			stop()
			<-served
			os.RemoveAll(dir)
		})
		return func() (api.Host, error) { return api.Dial(path) }
	})
}

// world is one script's surroundings.
type world struct {
	fake    *apitest.Host
	open    func() (api.Host, error)
	euid    int
	code    int
	held    int // Hosts opened and not released
	openErr error
}

func scripts(t *testing.T, open opener) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(te *testscript.Env) error {
			w := &world{fake: &apitest.Host{}}
			w.open = open(te, w.fake)
			te.Values["world"] = w
			te.Setenv("MUSTANG_CONFIG", filepath.Join(te.WorkDir, "mustang.toml"))
			return os.WriteFile(filepath.Join(te.WorkDir, "mustang.toml"), nil, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"mustang": mustang, "exits": exits, "given": given,
		},
		UpdateScripts: os.Getenv("UPDATE") != "",
	})
}

// oneAtATime guards cli's package-wide help flag, which every run writes to: scripts run in parallel.
var oneAtATime sync.Mutex

// mustang runs a command line; a last argument <FILE is its standard input.
func mustang(ts *testscript.TestScript, neg bool, args []string) {
	w := ts.Value("world").(*world)
	stdin := ""
	if n := len(args); n > 0 && strings.HasPrefix(args[n-1], "<") {
		stdin, args = ts.ReadFile(args[n-1][1:]), args[:n-1]
	}
	for i, arg := range args {
		if file, ok := strings.CutPrefix(arg, "@"); ok {
			args[i] = ts.MkAbs(file)
		}
	}
	oneAtATime.Lock()
	defer oneAtATime.Unlock()
	own := os.Args
	defer func() { os.Args = own }()
	os.Args = append([]string{"mustang"}, args...) // where cli looks for what a shell asks to complete
	w.code = run(context.Background(), env{
		args:  append([]string{"mustang"}, args...),
		stdin: strings.NewReader(stdin), stdout: ts.Stdout(), stderr: ts.Stderr(),
		getenv: ts.Getenv, euid: w.euid,
		open: func(context.Context, config.Config) (api.Host, func() error, error) {
			if w.openErr != nil {
				return nil, nil, w.openErr
			}
			h, err := w.open()
			w.held++
			return h, func() error { w.held--; return nil }, err
		},
		daemon: func(_ context.Context, cfg config.Config, log *logrus.Logger, _ func() (config.Config, error)) error {
			log.Info("daemon runs")
			_, err := fmt.Fprintf(ts.Stdout(), "%s %s\n", cfg.StateDir, cfg.LogLevel)
			return err
		},
		contradictions: func(cfg config.Config) []error {
			if cfg.ServicePools[0].String() == "10.97.0.0/16" {
				return []error{errors.New("service_pools = 10.97.0.0/16 overlaps the host's route to 10.97.3.0/24")}
			}
			return nil
		},
		purge: func(_ context.Context, cfg config.Config, o purgeOptions) error {
			_, err := fmt.Fprintf(ts.Stdout(), "purge %s %+v\n", cfg.StateDir, o)
			return err
		},
		bench: func(_ context.Context, o bench.Options, p bench.Progress) (bench.Result, error) {
			p.Begin(2)
			p.Step("one")
			p.End()
			return bench.Result{
				Notes: []string{fmt.Sprintf("measured %+v", o)},
				Rows: []bench.Row{{
					Mode: "veth", EBPF: true, Path: "direct", Metric: "tcp_stream", Value: 20, Unit: "Gbit/s", Runs: 1, Low: 20, High: 20,
				}},
			}, nil
		},
	})
	if w.held != 0 {
		ts.Fatalf("%d hosts were not released", w.held)
	}
	if neg == (w.code == exitOK) {
		ts.Fatalf("mustang %s: unexpected exit code %d", strings.Join(args, " "), w.code)
	}
}

// exits checks the exit code of the last mustang.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	if got := strconv.Itoa(ts.Value("world").(*world).code); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// given sets the fake up.
func given(ts *testscript.TestScript, _ bool, args []string) {
	w := ts.Value("world").(*world)
	switch args[0] {
	case "containers":
		fill(w.fake)
	case "ready":
		w.fake.SetStatus(api.Status{Version: "1.2.3", Daemon: true, Ready: true,
			Subsystems: []api.Subsystem{{Name: "maps", State: "ok", Detail: "12 pinned"}, {Name: "docker", State: "off", Detail: "no engine"}}})
	case "broken":
		w.fake.SetStatus(api.Status{Version: "1.2.3", Daemon: true,
			Subsystems: []api.Subsystem{{Name: "maps", State: "failed", Detail: "bpffs is not mounted"}}})
	case "drift":
		w.fake.SetDrift([]drift.Difference{
			{What: "route 10.201.0.2", Wanted: "dev mst1", Found: drift.Nothing, Do: drift.Repair},
			{What: "program lxc_ingress on mst1", Wanted: "to be the first", Found: "program 7 is", Do: "remove it"},
		}, []drift.Difference{{What: "network m", Wanted: "containers", Found: "mode ipvlan", Do: "drop CAP_NET_RAW", Note: true}})
	case "events":
		w.fake.SetEvents(events())
	case "soon":
		go func() {
			time.Sleep(300 * time.Millisecond)
			w.fake.SetStatus(api.Status{Version: "1.2.3", Ready: true})
		}()
	case "unprivileged":
		w.euid = 1000
		w.openErr = fmt.Errorf("open the state: %w", fs.ErrPermission)
	default:
		ts.Fatalf("given %s: unknown", args[0])
	}
}

// events are what a monitor would tell of.
func events() []monitor.Event {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	web := monitor.End{Addr: netip.MustParseAddrPort("10.201.0.2:4000"), Container: "web", Network: "shop"}
	db := monitor.End{Addr: netip.MustParseAddrPort("10.96.1.2:5432"), Service: "db", Network: "shop"}
	via := monitor.End{Addr: netip.MustParseAddrPort("10.201.0.3:5432"), Container: "db-1", Network: "shop"}
	return []monitor.Event{
		{Time: now, Kind: bpf.EventNew, Verdict: monitor.Forwarded, Path: bpf.PathSocket, Protocol: "tcp", From: web, To: db, Via: via},
		{Time: now, Kind: monitor.EventLost, Lost: 3},
		{Time: now, Kind: bpf.EventRefuse, Verdict: monitor.Refused, Reason: "no-backend", Protocol: "tcp", From: web, To: db},
	}
}

// fill adds what Docker would have brought: a service of two families, its endpoints and network.
func fill(h *apitest.Host) {
	h.ServiceList = append(h.ServiceList, service.View{
		ID: 5, Source: service.SourceDocker, Name: "web", Network: "shop", Affinity: 30,
		Frontends: []bpf.Frontend{
			{Addr: netip.MustParseAddr("10.96.1.2")},
			{Addr: netip.MustParseAddr("fd6d:7374:10::1:2"), Port: 80, Protocol: bpf.ProtocolTCP},
		},
		Backends: []service.BackendView{
			{ID: 1, Addr: netip.MustParseAddrPort("10.201.0.2:0"), Weight: 3, State: service.PhaseReady, Active: true, Container: "shop-web-1"},
			{ID: 2, Addr: netip.MustParseAddrPort("10.201.0.3:0"), Weight: 1, State: service.PhaseStarting, Container: "shop-web-2"},
			{ID: 3, Addr: netip.MustParseAddrPort("[fd6d:7374:c0de::2]:0"), Weight: 1, State: service.PhaseReady, Active: true, Container: "shop-web-1"},
		},
	})
	h.EndpointList = append(h.EndpointList, api.Endpoint{
		Number: 1, NetworkName: "shop", Container: "shop-web-1",
		Endpoint: driver.Endpoint{ID: "e1", NetworkID: "4f2a", Source: "docker", MAC: "02:42:0a:c9:00:02", HostMAC: "3e:e9:02:96:60:d6",
			IPv4: netip.MustParsePrefix("10.201.0.2/24"), IPv6: netip.MustParsePrefix("fd6d:7374:c0de::2/64"),
			HostIf: "mst1", Index: 12, Sandbox: "/run/docker/netns/1a2b"},
	})
	h.NetworkList = append(h.NetworkList,
		api.Network{ID: "4f2a77", Name: "shop", Number: 1, Mode: "veth", Subnets: []string{"10.201.0.0/24", "fd6d:7374:c0de::/64"},
			VIPs: []string{"10.96.1.0/24"}, Options: map[string]string{"mode": "veth", "mtu": "1400"}, Endpoints: 1, Services: 1},
		api.Network{ID: "4f2b00", Number: 2, Mode: "bridge", Subnets: []string{"10.201.1.0/24"}, VIPs: []string{}, Internal: true})
	port := api.Port{
		Protocol: "tcp", Host: netip.MustParseAddrPort("0.0.0.0:8080"), Port: 80, Count: 1,
		Endpoint: "e1", Container: "shop-web-1", NetworkID: "4f2a77", NetworkName: "shop",
		Addresses: []netip.Addr{netip.MustParseAddr("10.201.0.2"), netip.MustParseAddr("fd6d:7374:c0de::2")},
		State:     service.PhaseReady, Active: true, Reach: api.ReachAnywhere, Uplinks: []string{"eth0 192.0.2.1", "wlan0 198.51.100.7"},
	}
	h.PortList = append(h.PortList, port)
	port.Host, port.Uplinks = netip.MustParseAddrPort("[::]:8080"), []string{}
	h.PortList = append(h.PortList, port)
	port.Host, port.Reach = netip.MustParseAddrPort("127.0.0.1:9000"), api.ReachHost
	h.PortList = append(h.PortList, port)
	port.Host, port.Port, port.Count, port.Protocol = netip.MustParseAddrPort("192.0.2.1:20000"), 20000, 1000, "udp"
	port.Reach, port.Sources, port.Uplinks = api.ReachSources, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.0.0/16")}, []string{"eth0", "wlan0"}
	port.Endpoint, port.Container, port.NetworkID, port.NetworkName = "0123456789abcdef0123456789abcdef", "", "4f2b00", ""
	port.Addresses, port.State, port.Active = []netip.Addr{netip.MustParseAddr("10.201.1.2")}, service.PhaseUnhealthy, false
	h.PortList = append(h.PortList, port)
}
