// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/config"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/cni"
	"github.com/mustang-net/mustang/driver/cni/containerd"
	"github.com/mustang-net/mustang/driver/docker/watch"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/driver/ports"
	"github.com/mustang-net/mustang/ipam"
	"github.com/mustang-net/mustang/metrics"
	"github.com/mustang-net/mustang/monitor"
	"github.com/mustang-net/mustang/nft"
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/service/dns"
	"github.com/mustang-net/mustang/state"
)

// daemonLockTime is how long a daemon that starts waits for the state: commands have it for moments, but many may come, as
// from `mustang status --wait`, and on a slow machine a moment is a second.
const daemonLockTime = 10 * time.Second

// stateFile is the file of the state in its directory.
const stateFile = "state.db"

// host is mustang on one machine, wired: the daemon's, or a command's that found no daemon.
type host struct {
	cfg      config.Config // as it was at the start
	inForce  inForce
	log      *logrus.Logger
	store    state.Store
	datapath *bpf.Datapath
	links    link.Host
	ipam     *ipam.IPAM
	services *service.Manager
	tables   *nft.Tables
	driver   *driver.Manager
	cni      *cni.Manager
	events   *monitor.Hub  // of what the datapath does
	resolver *dns.Server   // nil without a daemon
	ports    *ports.Holder // nil without a daemon
	watcher  watcherState
	engine   *watch.Watcher // nil without Docker
	daemon   bool

	verifying sync.Mutex // held while somebody compares the kernel with the state, or repairs it

	metrics *metrics.Metrics // nil without a daemon
	shown   *metrics.Server  // nil where nobody is shown any

	changesCNI atomic.Bool // somebody has asked for what changes networks and containers of CNI

	uplinksSet chan struct{} // one at most: the names of uplinks were read anew
}

// daemonTime is how long a command waits for a daemon that has the state, and no socket: it is starting, or about to make a socket
// anew that somebody has removed.
const daemonTime = 3 * time.Second

// openHost returns the Host of a running daemon, or else one that works on the state and the maps
// itself, with the function that lets go of it.
func openHost(ctx context.Context, cfg config.Config) (api.Host, func() error, error) {
	return whenUnlocked(ctx, daemonTime, func(context.Context) (api.Host, func() error, error) { return openHostOnce(cfg) })
}

// lockPoll is how long a command or call waits between looks at a daemon that has the state, but no socket.
const lockPoll = 20 * time.Millisecond

// whenUnlocked repeats open while another process has the state, until the limit.
func whenUnlocked[H any](ctx context.Context, limit time.Duration, open func(context.Context) (H, func() error, error)) (H, func() error, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		host, release, err := open(ctx)
		if !errors.Is(err, state.ErrLocked) {
			return host, release, err
		}
		select {
		case <-ctx.Done():
			return host, nil, err
		case <-time.After(lockPoll):
		}
	}
}

func openHostOnce(cfg config.Config) (api.Host, func() error, error) {
	client, err := api.Dial(cfg.Socket)
	if err == nil {
		return client, func() error { return nil }, nil
	}
	if !errors.Is(err, api.ErrNoDaemon) {
		return nil, nil, err
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	h, err := newHost(cfg, log, false)
	if err != nil {
		return nil, nil, err
	}
	return h, h.release, nil
}

// newHost opens the state and the maps. Nothing but missing maps is created in the kernel.
func newHost(cfg config.Config, log *logrus.Logger, daemon bool) (*host, error) {
	h := &host{cfg: cfg, log: log, daemon: daemon, uplinksSet: make(chan struct{}, 1)}
	h.inForce.set(cfg)
	if err := h.open(); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

func (h *host) open() (err error) {
	var opts state.Options
	if h.daemon {
		opts.LockTimeout = daemonLockTime
	}
	if h.store, err = state.Open(filepath.Join(h.cfg.StateDir, stateFile), opts); err != nil {
		return err
	}
	if h.datapath, err = bpf.Open(h.cfg.BPFFS); err != nil {
		return err
	}
	if err := h.datapath.RemoveStrays(); err != nil { // the state's lock keeps others from writing
		return err
	}
	h.events = watchDatapath(h.datapath, h.names)
	pools, err := h.setPools()
	if err != nil {
		return err
	}
	h.tables = nft.New(nft.Options{Services: h.datapath, Pools: pools, Cookie: h.links.Cookie, Forget: h.links.ForgetFlows})
	if h.ipam, err = ipam.New(h.store, h.ipamOptions()); err != nil {
		return err
	}
	h.services, err = service.New(h.store, serviceMaps{h.datapath, h.tables}, service.Options{
		Pools: h.cfg.ServicePools, HostAddr: h.links.HasAddr, Log: h.log,
	})
	if err != nil {
		return err
	}
	cfg := driver.Config{
		Store: h.store, Links: h.links, Datapath: h.datapath, Services: h.services, Tables: h.tables,
		Pools: h.cfg.ServicePools, Uplinks: h.cfg.Uplinks, Log: h.log,
		Introduce: h.introduce,
	}
	if h.daemon {
		if h.ports, err = ports.New(h.datapath.Exempt, h.log); err != nil {
			return err
		}
		cfg.Ports = h.ports
		h.resolver = dns.New(h.services, sandboxNetwork{h.links, h.datapath})
		cfg.Resolver = sandboxResolver{h.resolver}
		h.metrics = newMetrics(h)
	}
	if h.driver, err = driver.New(cfg); err != nil {
		return err
	}
	h.cni, err = cni.New(cni.Options{
		Store: h.store, Driver: h.driver, Pools: h.ipam, Links: h.links, Containers: h.services,
		VIPs:   h.cfg.ServicePools,
		BootID: bootID(),
		Labels: func(ctx context.Context, container string) (map[string]string, error) {
			return containerd.Labels(ctx, h.inForce.config.Load().Containerd, container)
		},
		Declared: func(name string) bool { return cni.Declared(h.inForce.config.Load().CNIConfDir, name) },
		Shaper:   func(name string) (*cni.Shaper, error) { return cni.ShaperOf(h.inForce.config.Load().CNIConfDir, name) },
		Swept:    h.daemon, Log: h.log,
	})
	if err != nil {
		return err
	}
	h.cni.Restore()
	if !h.daemon {
		h.tables.Know(h.driver.Sandboxes())
		if err := h.driver.Recall(); err != nil {
			return err
		}
	}
	return h.services.Reconcile()
}

// setPools tells the datapath the first service pool of each family, and returns them.
func (h *host) setPools() (pools [2]netip.Prefix, err error) {
	if err := oneOfEachFamily(h.cfg.ServicePools); err != nil {
		return pools, err
	}
	for _, p := range h.cfg.ServicePools {
		if p.Addr().Is6() {
			pools[1] = p
		} else {
			pools[0] = p
		}
	}
	return pools, h.datapath.SetPools(pools[0], pools[1])
}

func (h *host) ipamOptions() ipam.Options {
	o := ipam.Options{HostRoutes: h.links.Routes, Reserved: h.cfg.ServicePools, BootID: bootID()}
	for _, p := range h.cfg.AddressPools {
		o.DefaultPools = append(o.DefaultPools, p.Pool)
		if p.Pool.Addr().Is4() {
			o.DefaultSize4 = p.Size
		} else {
			o.DefaultSize6 = p.Size
		}
	}
	return o
}

// bootID tells boots apart (random(4)); "" where the kernel does not tell.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// release is close for a command or call. No daemon follows the host's addresses then, of which networks of CNI have some.
func (h *host) release() error {
	var err error
	if h.changesCNI.Load() {
		err = h.driver.SyncAddrs()
		_ = h.driver.SweepOrphans() // the next call goes on with it: this one has given its answer
	}
	return errors.Join(err, h.close())
}

// close lets go of what open took; the datapath goes on by itself.
func (h *host) close() error {
	if h.driver != nil {
		h.driver.Close()
	}
	if h.tables != nil {
		h.tables.Close() // before our resolver, so that no query goes to where nobody listens
	}
	if h.resolver != nil {
		h.resolver.Close()
	}
	if h.ports != nil {
		h.ports.Close()
	}
	if h.datapath != nil {
		h.datapath.Close()
	}
	if h.store != nil {
		return h.store.Close()
	}
	return nil
}
