// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/config"
	"github.com/mustang-net/mustang/driver/docker"
	"github.com/mustang-net/mustang/driver/docker/watch"
	"github.com/mustang-net/mustang/service/dns"
	"github.com/mustang-net/mustang/state"
)

// The datapath trusts our resolvers for 2 s after a beat.
const heartbeat = 400 * time.Millisecond

// retryEvery is how long a failed write to the maps waits for another try.
const retryEvery = 5 * time.Second

// runDaemon serves Docker and the command line until ctx ends.
func runDaemon(ctx context.Context, cfg config.Config, log *logrus.Logger, again func() (config.Config, error)) error {
	r, stop := newReloader(again)
	defer stop()
	d, err := openDoor(log)
	if err != nil {
		return err
	}
	err = d.run(ctx, cfg, log, r)
	return errors.Join(err, d.close(err))
}

// run is the daemon behind its door.
func (d *door) run(ctx context.Context, cfg config.Config, log *logrus.Logger, r reloader) error {
	// in turn with calls of runtimes, one of which has the state at any time while many come
	unlock, err := lockFile(ctx, cniLock(cfg))
	if err != nil {
		return err
	}
	h, err := newHost(cfg, log, true)
	if err := errors.Join(err, unlock()); err != nil {
		return err
	}
	defer func() {
		if err := h.close(); err != nil {
			log.WithError(err).Warn("close the state")
		}
	}()
	h.clearAside()
	if err := h.start(); err != nil {
		return err
	}
	// last: whoever finds the socket may rely on everything
	socket, err := api.Listen(cfg.Socket)
	if err != nil {
		return err
	}
	control := last(cfg.Socket, socket, api.Listen, log)
	defer func() { _ = control.Close() }() // who served has closed it
	return h.serve(ctx, control, d, r)
}

// asideAge is how old a file is that nobody is about to give its name.
const asideAge = time.Minute

// clearAside removes what was made beside a socket or the state to take its place, by who was killed before it did.
func (h *host) clearAside() {
	for pattern, age := range map[string]time.Duration{
		filepath.Join(filepath.Dir(h.cfg.PluginSocket), docker.Aside): 0,
		filepath.Join(filepath.Dir(h.cfg.Socket), api.Aside):          0,
		filepath.Join(h.cfg.StateDir, state.Aside):                    asideAge, // which commands make, too
	} {
		left, _ := filepath.Glob(pattern) // the patterns are well-formed
		for _, path := range left {
			info, err := os.Lstat(path)
			if err == nil && time.Since(info.ModTime()) >= age {
				err = os.RemoveAll(path)
			}
			if err != nil {
				h.log.WithError(err).Warn("remove what was left beside a file")
			}
		}
	}
}

// start makes the kernel agree with the state.
func (h *host) start() error {
	if err := h.connect(); err != nil {
		return err
	}
	if err := h.driver.Restore(); err != nil {
		// one endpoint that cannot be mended must not keep the others from being served
		h.log.WithError(err).Error("restore networks and endpoints")
	}
	return nil
}

// connect has the pins, the socket hooks and their heartbeat.
func (h *host) connect() error {
	if err := h.links.OpenSysctls(); err != nil {
		return err
	}
	if err := h.datapath.MendPins(); err != nil {
		h.log.WithError(err).Error("mend the pins")
	}
	if err := h.hook(h.datapath); err != nil {
		return err
	}
	if h.daemon {
		return h.datapath.Beat()
	}
	return nil
}

// hook attaches the socket hooks, and makes the host's own sockets known to them.
func (h *host) hook(d hooks) error {
	cgroup, err := cgroupOf(h.cfg)
	if err != nil {
		return err
	}
	if err := d.AttachSock(cgroup); err != nil {
		return err
	}
	cookie, err := h.links.Cookie("")
	if err != nil {
		return err
	}
	return d.PutSandbox(bpf.Sandbox{Cookie: cookie, SocketLB: true, AllNetworks: true})
}

// hooks are the socket hooks.
type hooks interface {
	AttachSock(cgroup string) error
	PutSandbox(bpf.Sandbox) error
}

// serve runs everything that serves until ctx ends or one of them fails.
func (h *host) serve(ctx context.Context, control net.Listener, d *door, r reloader) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	run := func(name string, fn func(context.Context) error) {
		group.Go(func() {
			if err := fn(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	if h.cfg.DockerSocket != "" {
		h.engine = watch.New(watch.Options{
			Client:     watch.NewClient(h.cfg.DockerSocket),
			Containers: engineContainers{h.services, h},
			Networks:   engineNetworks{h.driver, h},
			Answers:    h.answers,
			Log:        h.log,
			Applied:    h.applied,
		})
	}
	d.plugin.Measure(h.metrics.PluginCall)
	d.plugin.Begin(h.driver, enginePools{h.ipam})
	run("beat", h.beat)
	run("beat in sandboxes", h.beatTables)
	run("retry", h.retry)
	run("follow uplinks", h.followUplinks)
	run("collect flows", h.collectFlows)
	run("sweep", h.sweep)
	run("sweep what a lost state has left", h.sweepLost)
	run("look after the pins", h.keepPins)
	run("serve the command line", func(ctx context.Context) error { return api.Serve(ctx, control, h, h.log, h.observe) })
	if h.cfg.DockerSocket == "" {
		if err := h.synced(); err != nil {
			h.log.WithError(err).Warn("write services to the maps")
		}
	} else {
		socket, err := d.listen(h.cfg.PluginSocket)
		if err != nil {
			cancel(err)
		} else {
			run("serve Docker", func(context.Context) error {
				return d.plugin.Serve(last(h.cfg.PluginSocket, socket, docker.Listen, h.log))
			})
			run("watch Docker", h.engine.Run)
		}
	}
	run("show the metrics", func(ctx context.Context) error { return h.reloads(ctx, r) })
	run("tell the service manager", watchdog)
	if ctx.Err() == nil {
		notify(daemon.SdNotifyReady)
	}
	<-ctx.Done()
	notify(daemon.SdNotifyStopping)
	err := d.plugin.Close()
	group.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// beat tells the datapath that our resolvers answer.
func (h *host) beat(ctx context.Context) error {
	return every(ctx, heartbeat, h.datapath.Beat)
}

// beatTables is beat for sandboxes without hooks. A large change of their tables may hold it up, and it nothing else.
func (h *host) beatTables(ctx context.Context) error {
	return every(ctx, heartbeat, func() error {
		h.tables.Beat()
		return nil
	})
}

// retry repeats writes to the maps that failed.
func (h *host) retry(ctx context.Context) error {
	return every(ctx, retryEvery, func() error {
		h.checkTables()
		if h.services.Err() == nil {
			return nil
		}
		if err := h.services.Reconcile(); err != nil {
			h.log.WithError(err).Warn("write services to the maps")
		}
		return nil
	})
}

// sweepEvery is how long what a container of CNI leaves stays after its end.
const sweepEvery = time.Second

// sweep removes what containers leave whose runtime says nothing after they have ended.
func (h *host) sweep(ctx context.Context) error {
	return every(ctx, sweepEvery, func() error {
		h.cni.Sweep(ctx)
		return nil
	})
}

// sweepLostEvery is how long what a lost state has left stays after the last of its containers: each look goes through all namespaces.
const sweepLostEvery = 5 * time.Second

// sweepLost removes what a lost state has left.
func (h *host) sweepLost(ctx context.Context) error {
	return every(ctx, sweepLostEvery, func() error {
		if err := h.sweepOrphans(); err != nil {
			h.log.WithError(err).Warn("remove what a lost state has left")
		}
		return nil
	})
}

// sweepOrphans removes what a lost state has left, with its services, once all of its containers have ended.
func (h *host) sweepOrphans() error {
	if !h.driver.Orphaned() {
		return nil
	}
	if err := h.driver.SweepOrphans(); err != nil || h.driver.Orphaned() || !h.knows() {
		return err
	}
	return h.synced()
}

// keepPins makes the datapath anew when somebody has emptied the BPF file system: programs that nothing pins are detached.
func (h *host) keepPins(ctx context.Context) error {
	var again time.Time // when one that failed is tried again, which may have pinned the maps: everybody waits for it
	return every(ctx, lookEvery, func() error {
		if time.Now().Before(again) || again.IsZero() && h.datapath.Pinned() {
			return nil
		}
		h.verifying.Lock()
		defer h.verifying.Unlock()
		if again.IsZero() && h.datapath.Pinned() { // who held the lock has repaired
			return nil
		}
		if err := h.repair(); err != nil {
			again = time.Now().Add(time.Minute)
			h.log.WithError(err).Error("make the datapath anew, of which somebody has removed pins: tried again in a minute")
			return nil
		}
		again = time.Time{}
		h.log.Warn("somebody has removed pins of the datapath: made anew")
		return nil
	})
}

// checkTables mends what a firewall that was loaded anew has taken from networks without eBPF.
func (h *host) checkTables() {
	mended, err := h.tables.Check()
	if err != nil {
		h.log.WithError(err).Warn("write the host's nftables")
	} else if mended {
		h.log.Info("the host's nftables lacked what networks with ebpf=off need: written again")
	}
}

func every(ctx context.Context, interval time.Duration, fn func() error) error {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
			if err := fn(); err != nil {
				return err
			}
		}
	}
}

// introduce has the services told whose the endpoints of a network are.
func (h *host) introduce(ctx context.Context, networkID string) {
	if h.engine != nil {
		h.engine.Introduce(ctx, networkID)
	}
}

// answers tells whether the engine's resolver, in the sandbox of a container on a network, answers a name with an address.
func (h *host) answers(ctx context.Context, networkID, name string, addr netip.Addr) (bool, error) {
	err := errors.New("no container on the network runs")
	for _, e := range h.driver.Endpoints() {
		if e.NetworkID != networkID || e.Sandbox == "" || e.IPv4.Addr() == addr || e.IPv6.Addr() == addr {
			continue // it may not have its resolver yet
		}
		var got []netip.Addr
		got, err = dns.Lookup(ctx, sandboxNetwork{h.links, h.datapath}, dns.Sandbox{Cookie: e.Cookie, Key: e.Sandbox}, name, addr.Is6())
		if err == nil {
			return slices.Contains(got, addr), nil
		}
	}
	return false, err
}

// synced says that all containers are known, so that leftovers in the maps can go.
func (h *host) synced() error {
	h.watcher.synced.Store(true)
	if h.driver.Orphaned() {
		return nil // what nobody can explain now is what keeps them going
	}
	return h.services.Sync()
}
