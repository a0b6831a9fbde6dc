// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"io"
	"net/netip"

	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
)

// engine is mustang with the part of Docker's engine played by us, in the namespace of the process.
type engine struct {
	links    link.Host
	datapath *bpf.Datapath
	services *service.Manager
	driver   *driver.Manager
	networks int
	others   int // services besides those of the pairs
}

// newEngine opens a datapath of its own below bpffs, whose socket hooks see the cgroup.
func newEngine(bpffs, cgroup string) (e *engine, err error) {
	e = &engine{}
	if e.datapath, err = bpf.Open(bpffs); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.datapath.Close()
		}
	}()
	log := logrus.New()
	log.SetOutput(io.Discard)
	pools := service.DefaultPools
	if err = e.datapath.SetPools(pools[0], pools[1]); err != nil {
		return nil, err
	}
	store := state.Memory()
	if e.services, err = service.New(store, e.datapath, service.Options{Log: log}); err != nil {
		return nil, err
	}
	e.driver, err = driver.New(driver.Config{
		Store: store, Links: e.links, Datapath: e.datapath, Services: e.services, Pools: pools, Log: log,
	})
	if err != nil {
		return nil, err
	}
	if err = e.services.Sync(); err != nil {
		return nil, err
	}
	return e, e.datapath.AttachSock(cgroup)
}

// pair connects two sandboxes by a network, as the engine would on `docker run` of a server with an alias.
func (e *engine) pair(mode string) (*pair, error) {
	p, err := newPair(mode, true)
	if err != nil {
		return nil, err
	}
	if err := e.connect(p); err != nil {
		p.close()
		return nil, fmt.Errorf("connect two sandboxes by mode %s with eBPF: %w", mode, err)
	}
	return p, nil
}

func (e *engine) connect(p *pair) error {
	e.networks++
	id := fmt.Sprintf("bench-%d", e.networks)
	pool := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, byte(e.networks), 0}), 24)
	host := func(n byte) netip.Prefix {
		a := pool.Addr().As4()
		a[3] = n
		return netip.PrefixFrom(netip.AddrFrom4(a), pool.Bits())
	}
	err := e.driver.CreateNetwork(context.Background(), driver.NetworkConfig{
		ID: id, Name: id, Options: variants()[p.mode], IPv4: []driver.Subnet{{Pool: pool, Gateway: host(1)}},
	})
	if err != nil {
		return err
	}
	if err := e.run(id, fmt.Sprintf("server%05d", e.networks), host(10), p.server, "web"); err != nil {
		return err
	}
	if err := e.run(id, fmt.Sprintf("client%05d", e.networks), host(11), p.client); err != nil {
		return err
	}
	p.direct = host(10).Addr()
	for _, s := range e.services.List() {
		if s.Network == id && s.Name == "web" {
			p.vip, p.prepare = s.Frontends[0].Addr, e.preload
			return nil
		}
	}
	return fmt.Errorf("the service of %s has no VIP", id)
}

// run puts a sandbox on a network, under the names given.
func (e *engine) run(network, id string, addr netip.Prefix, s sandbox, names ...string) error {
	ctx := context.Background()
	ep, err := e.driver.CreateEndpoint(ctx, driver.EndpointConfig{ID: id, NetworkID: network, IPv4: addr})
	if err != nil {
		return err
	}
	join, err := e.driver.Join(ctx, network, id, s.path())
	if err != nil {
		return err
	}
	err = e.links.Enter(ep.PeerIf, s.path(), link.Inner{
		Name: "eth0", Addrs: []netip.Prefix{addr}, Routes: join.Routes, Gateway: join.Gateway,
	})
	if err != nil {
		return err
	}
	e.services.PutContainer(service.Container{
		ID: id, Name: id, Phase: service.PhaseReady, Source: service.SourceDocker, Aliases: map[string][]string{id: names},
	})
	return e.services.Err()
}

// preload sees to it that there are n services, of which one is measured.
func (e *engine) preload(_ string, n int) error {
	if e.others == n-1 {
		return nil
	}
	var specs []service.Spec
	for i := range n - 1 {
		// addresses that [service.Manager] keeps for services made by hand, and ports until there are enough
		front := bpf.Frontend{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + i%250)}), Port: uint16(1000 + i/250), Protocol: bpf.ProtocolTCP}
		specs = append(specs, service.Spec{Frontend: front, Backends: []service.Target{{Addr: netip.AddrPortFrom(other(i), 80)}}})
	}
	if _, _, _, _, err := e.services.Apply(specs); err != nil {
		return fmt.Errorf("preload %d services: %w", n-1, err)
	}
	e.others = n - 1
	return nil
}
