// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/mustang-net/mustang/driver/link"
)

// Plugin is what a runtime executes.
type Plugin struct {
	// Open returns who does the work, and a function that lets go of it.
	Open func(context.Context) (Host, func() error, error)
}

// Run does what CNI_COMMAND asks for and returns the exit code. Results and errors go to standard output.
func (p Plugin) Run(ctx context.Context, about string) int {
	on := func(do, again verb) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return p.with(ctx, args, do, again) }
	}
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: on(add, addAgain), Del: on(del, del), Check: on(check, check), GC: on(collect, collect), Status: on(status, status),
	}, version.VersionsStartingFrom("0.4.0"), about)
	if err == nil {
		return 0
	}
	if err := err.Print(); err != nil {
		fmt.Fprintln(os.Stderr, "mustang: write the error:", err)
	}
	return 1
}

type verb func(context.Context, Host, *skel.CmdArgs) error

// with runs a verb and gives its error the code of the specification. Where the daemon has ended under it, another does the work again.
func (p Plugin) with(ctx context.Context, args *skel.CmdArgs, do, again verb) error {
	err := p.once(ctx, args, do)
	for i := 0; i < cutOffTries && cutOff(err) && ctx.Err() == nil; i++ {
		time.Sleep(cutOffPause)
		err = p.once(ctx, args, again)
	}
	var coded *types.Error
	if err == nil || errors.As(err, &coded) {
		return err
	}
	return types.NewError(code(err), err.Error(), "")
}

func (p Plugin) once(ctx context.Context, args *skel.CmdArgs, do verb) error {
	h, release, err := p.Open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(do(ctx, h, args), release())
}

// A daemon that has ended is given a moment to let go of its socket and its state. One that ends under this very call again and again
// shall not be asked for ever.
const (
	cutOffPause = 50 * time.Millisecond
	cutOffTries = 5
)

// cutOff tells whether a daemon was there, and ended before it had answered.
func cutOff(err error) bool {
	var end interface{ Unanswered() }
	return errors.As(err, &end)
}

// errOurs are those from 100 on.
const errConflict = 100

// code finds the error code of the specification by an error's marker method.
func code(err error) uint {
	var (
		wrong  interface{ InvalidParameter() }
		absent interface{ NotFound() }
		clash  interface{ Conflict() }
		later  interface{ Unavailable() }
	)
	switch {
	case errors.As(err, &wrong):
		return types.ErrInvalidNetworkConfig
	case errors.As(err, &absent):
		return types.ErrUnknownContainer
	case errors.As(err, &clash):
		return errConflict
	case errors.As(err, &later), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return types.ErrTryAgainLater
	case errors.Is(err, link.ErrNoNetns):
		return types.ErrInvalidNetNS
	}
	return types.ErrInternal
}

func keyOf(c *conf, args *skel.CmdArgs) Key {
	return Key{Network: c.Name, Attachee: Attachee{Container: args.ContainerID, IfName: args.IfName}}
}

// read makes an attachment of what the runtime said.
func read(args *skel.CmdArgs) (*conf, Attachment, error) {
	c, err := parseConf(args.StdinData)
	if err != nil {
		return nil, Attachment{}, err
	}
	a := Attachment{Key: keyOf(c, args), Sandbox: args.Netns}
	if a.Of, err = c.network(); err != nil {
		return nil, a, err
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, a, types.NewError(types.ErrDecodingFailure, "read prevResult", err.Error())
	}
	return c, a, c.ask(&a, args.Args)
}

// readFor is read for a verb that needs the sandbox: where none is, the error has a code of its own, which is lost on
// the way from a daemon.
func readFor(args *skel.CmdArgs) (*conf, Attachment, error) {
	if err := (link.Host{}).CheckNetns(args.Netns); errors.Is(err, link.ErrNoNetns) {
		return nil, Attachment{}, types.NewError(types.ErrInvalidNetNS, link.ErrNoNetns.Error()+": "+args.Netns, "")
	}
	sandbox, err := os.Stat(args.Netns)
	own, ownErr := os.Stat("/proc/self/ns/net")
	if err == nil && ownErr == nil && os.SameFile(sandbox, own) {
		return nil, Attachment{}, types.NewError(types.ErrInvalidNetNS, args.Netns+" is the host's own network namespace: "+
			"give the container one of its own, or attach it to no network", "")
	}
	return read(args)
}

func add(ctx context.Context, h Host, args *skel.CmdArgs) error {
	c, a, err := readFor(args)
	if err != nil {
		return err
	}
	if a.Of.Delegated {
		if err := delegate(ctx, c, args, &a); err != nil {
			return err
		}
	}
	done, err := h.Add(ctx, a)
	if err != nil {
		if a.Of.Delegated {
			err = errors.Join(err, c.ofDelegate("take addresses back", invoke.DelegateDel(context.WithoutCancel(ctx), c.IPAM.Type, args.StdinData, nil)))
		}
		return err
	}
	r, err := resultOf(c, a, done)
	if err != nil {
		return err
	}
	return types.PrintResult(r, c.CNIVersion)
}

// addAgain is add where nobody knows how far another has come with it.
func addAgain(ctx context.Context, h Host, args *skel.CmdArgs) error {
	if err := deleteFirst(ctx, h, args); err != nil {
		return err
	}
	return add(ctx, h, args)
}

func deleteFirst(ctx context.Context, h Host, args *skel.CmdArgs) error {
	_, err := h.Delete(ctx, Detachment{Key: keyOf(lenient(args), args), Sandbox: args.Netns})
	return err
}

// resultOf is what the runtime and the plugins after us learn, with what those before us made.
func resultOf(c *conf, a Attachment, done Attached) (*types100.Result, error) {
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if c.PrevResult != nil {
		before, err := types100.GetResult(c.PrevResult)
		if err != nil {
			return nil, types.NewError(types.ErrDecodingFailure, "read prevResult", err.Error())
		}
		r = before
	}
	if done.HostIf != "" {
		r.Interfaces = append(r.Interfaces, &types100.Interface{Name: done.HostIf, Mac: done.HostMAC})
	}
	r.Interfaces = append(r.Interfaces, &types100.Interface{Name: a.IfName, Mac: done.MAC, Sandbox: a.Sandbox})
	at := len(r.Interfaces) - 1
	for _, ip := range done.IPs {
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: &at, Address: *ipNet(ip.Address), Gateway: ip.Gateway.AsSlice()})
	}
	for _, route := range done.Routes {
		r.Routes = append(r.Routes, &types.Route{Dst: *ipNet(route.To), GW: route.Via.AsSlice()})
	}
	for _, dns := range []types.DNS{c.RuntimeConfig.DNS, c.DNS, c.fromIPAM} { // or that of the plugins before us
		if !dns.IsEmpty() {
			r.DNS = dns
			break
		}
	}
	return r, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// del reads no more of the configuration than it needs: whatever is wrong with the rest, the container goes.
func del(ctx context.Context, h Host, args *skel.CmdArgs) error {
	c := lenient(args)
	giveBack := func() error {
		return c.ofDelegate("take addresses back", invoke.DelegateDel(ctx, c.IPAM.Type, args.StdinData, nil))
	}
	var err error
	before := c.IPAM.Type == ipamDHCP && args.Netns != "" // on the device
	if before {
		err = errors.Join(giveBack(), link.Host{}.RemoveInside(args.Netns, keyOf(c, args).standIn())) // of an ADD that was killed
	}
	done, failed := h.Delete(ctx, Detachment{Key: keyOf(c, args), Sandbox: args.Netns})
	err = errors.Join(err, failed)
	if failed == nil && c.delegated() && !before && !done.Stays {
		err = errors.Join(err, giveBack())
	}
	return err
}

func check(ctx context.Context, h Host, args *skel.CmdArgs) error {
	c, a, err := readFor(args)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing", "CHECK comes with the result of ADD")
	}
	r, err := types100.GetResult(c.PrevResult)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "read prevResult", err.Error())
	}
	if err := a.expect(r); err != nil {
		return err
	}
	if c.delegated() {
		if err := invoke.DelegateCheck(ctx, c.IPAM.Type, args.StdinData, nil); err != nil {
			return err
		}
	}
	return h.Check(ctx, a)
}

// expect takes what ADD made from its result.
func (a *Attachment) expect(r *types100.Result) error {
	at := -1
	for i, dev := range r.Interfaces {
		if dev.Name == a.IfName && dev.Sandbox != "" {
			at, a.MAC = i, dev.Mac
		}
	}
	if at < 0 {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult has no interface "+a.IfName+" in a sandbox", "")
	}
	a.IPs = nil
	for _, ip := range r.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok && ip.Interface != nil && *ip.Interface == at {
			a.IPs = append(a.IPs, addr.Unmap())
		}
	}
	for _, route := range r.Routes {
		if addr, ok := netip.AddrFromSlice(route.Dst.IP); ok {
			bits, _ := route.Dst.Mask.Size()
			a.Routes = append(a.Routes, netip.PrefixFrom(addr.Unmap(), bits))
		}
	}
	return nil
}

// collect takes no configuration that it cannot read: it would name no valid attachment, and all would be removed.
func collect(ctx context.Context, h Host, args *skel.CmdArgs) error {
	c := &conf{}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return types.NewError(types.ErrDecodingFailure, "read the network configuration", err.Error())
	}
	var valid []Attachee
	for _, a := range c.ValidAttachments {
		valid = append(valid, Attachee{Container: a.ContainerID, IfName: a.IfName})
	}
	done, err := h.Collect(ctx, c.Name, valid)
	if !c.delegated() {
		return err
	}
	for _, a := range done.Swept { // plugins that know no GC do not find those themselves
		failed := c.ofDelegate("take addresses back", delegateDelFor(ctx, c, args, a))
		if failed == nil {
			_, failed = h.Delete(ctx, Detachment{Key: Key{Network: c.Name, Attachee: a}})
		}
		err = errors.Join(err, failed)
	}
	return errors.Join(err, c.ofDelegate("collect addresses", invoke.DelegateGC(ctx, c.IPAM.Type, args.StdinData, nil)))
}

func status(ctx context.Context, h Host, args *skel.CmdArgs) error {
	c, a, err := read(args)
	if err == nil {
		err = h.CanAdd(ctx, a.Of)
	}
	if err == nil && c.delegated() {
		err = invoke.DelegateStatus(ctx, c.IPAM.Type, args.StdinData, nil)
	}
	if err != nil && !cutOff(err) {
		return types.NewError(types.ErrPluginNotAvailable, "no container can be added to the network", err.Error())
	}
	return err
}
