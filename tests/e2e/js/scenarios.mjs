// What the JavaScript clients of E2B, unmodified, do against Joey: node scenarios.mjs. tests/e2e/test_e2b_js.py runs it.
import assert from 'node:assert/strict'
import { CommandExitError, NotFoundError, Sandbox, Template } from 'e2b'
import { Sandbox as Interpreter } from '@e2b/code-interpreter'

const sandbox = await Sandbox.create({ timeoutMs: 60_000, envs: { FOO: 'bar' }, metadata: { k: 'v w' } })
const done = await sandbox.commands.run('echo $FOO; echo err >&2')
assert.deepEqual([done.stdout, done.stderr, done.exitCode], ['bar\n', 'err\n', 0])
await assert.rejects(sandbox.commands.run('exit 3'), (error) => error instanceof CommandExitError && error.exitCode === 3)
const running = await sandbox.commands.run('cat', { background: true, stdin: true })
await sandbox.commands.sendStdin(running.pid, 'hé')
await sandbox.commands.closeStdin(running.pid)
assert.equal((await running.wait()).stdout, 'hé')
const killed = await sandbox.commands.run('sleep 100', { background: true })
assert.equal(await killed.kill(), true)

await sandbox.files.write('a/b.txt', 'hello')
assert.equal(await sandbox.files.read('a/b.txt'), 'hello')
assert.deepEqual((await sandbox.files.list('a')).map((one) => one.name), ['b.txt'])
assert.equal((await sandbox.files.rename('a/b.txt', 'a/c.txt')).path, '/home/user/a/c.txt')
await sandbox.files.remove('a/c.txt')
assert.equal(await sandbox.files.exists('a/c.txt'), false)
await assert.rejects(sandbox.files.read('a/c.txt'), NotFoundError)

const seen = []
const decoder = new TextDecoder()
const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: (data) => seen.push(decoder.decode(data)) })
await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 40 })
await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
assert.equal((await terminal.wait()).exitCode, 0)
assert.match(seen.join(''), /40 100/)

assert.equal((await Sandbox.list({ query: { metadata: { k: 'v w' } } }).nextItems()).length, 1)
assert.equal(await sandbox.isRunning(), true)
assert.equal(await sandbox.kill(), true)
await assert.rejects(Sandbox.connect(sandbox.sandboxId), NotFoundError)
await assert.rejects(Sandbox.create('no-such-template'), /not found/)

await Template.build(Template().fromBaseImage().runCmd('echo js > ~/made'), 'from-js')
const made = await Sandbox.create('from-js', { timeoutMs: 60_000 })
assert.equal(await made.files.read('made'), 'js\n')
assert.equal(await made.kill(), true)

const code = await Interpreter.create({ timeoutMs: 60_000 })
assert.equal((await code.runCode('x = 20; x + 1')).text, '21')
const lines = []
const failed = await code.runCode('print(x); 1/0', { onStdout: (line) => lines.push(line.line) })
assert.deepEqual([lines, failed.error.name], [['20\n'], 'ZeroDivisionError'])
assert.equal(await code.kill(), true)
console.log('all of it')
