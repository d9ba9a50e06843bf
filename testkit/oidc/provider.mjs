// The real OpenID provider (npm `oidc-provider`) that tests of identity start, dressed as Auth0: its paths, its `audience` and
// `organization` parameters, `org_id` and `azp` claims, an issuer with a trailing slash, 403 while a device waits.
//
// Owns the clients, people and keys of one test, and the levers below /test. Not here: any rule of EnvForge.
// Usage: node provider.mjs FOLDER-OF-NODE_MODULES PORT SETUP-AS-JSON
import { generateKeyPair, createPrivateKey, sign as signBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { join } from 'node:path';
import { promisify } from 'node:util';

const [modules, port, setupText] = process.argv.slice(2);
const setup = JSON.parse(setupText);
const require = createRequire(join(modules, 'package.json'));
const { default: Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));

const issuer = `http://127.0.0.1:${port}/`;
const base = issuer.slice(0, -1);
const audience = setup.audience;

// --- keys ---------------------------------------------------------------------------------------------------------
// The first four lie beside this file: to make one takes seconds on a busy machine. They sign nothing but tokens of tests.
const prepared = JSON.parse(readFileSync(new URL('keys.json', import.meta.url)));
let keyNumber = 0;
const newKey = async () => {
  keyNumber += 1;
  if (keyNumber <= prepared.length) return prepared[keyNumber - 1];
  const { privateKey } = await promisify(generateKeyPair)('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), kid: `key-${keyNumber}`, use: 'sig', alg: 'RS256' };
};
let keys = [await newKey()];

// --- people -------------------------------------------------------------------------------------------------------
// Who sits in front of every browser, until a test says otherwise.
let person = { subject: 'auth0|ada', organization: 'org_acme', email: 'ada@acme.test', name: 'Ada', email_verified: true };
const people = new Map();
const organizations = new Map(); // by grant: the same person can sign in to several.

// --- storage that outlives a rotation of keys ---------------------------------------------------------------------
const stored = new Map();
class Adapter {
  constructor(name) { this.name = name; }
  key(id) { return `${this.name}:${id}`; }
  async upsert(id, payload) { stored.set(this.key(id), payload); }
  async find(id) { return stored.get(this.key(id)); }
  async findBy(field, value) {
    for (const [key, payload] of stored) {
      if (key.startsWith(`${this.name}:`) && payload[field] === value) return payload;
    }
    return undefined;
  }
  async findByUserCode(userCode) { return this.findBy('userCode', userCode); }
  async findByUid(uid) { return this.findBy('uid', uid); }
  async consume(id) { const payload = stored.get(this.key(id)); if (payload) payload.consumed = Math.floor(Date.now() / 1000); }
  async destroy(id) { stored.delete(this.key(id)); }
  async revokeByGrantId(grantId) {
    for (const [key, payload] of stored) if (payload.grantId === grantId) stored.delete(key);
  }
}

// --- the provider -------------------------------------------------------------------------------------------------
let backchannel = 'http://127.0.0.1:9/not-set';
let lifetimes = { id_token: 36000, access_token: 86400 };

// What an Action has to add at Auth0, whose devices' tokens have no `org_id`.
const customClaim = 'https://envforge.test/org_id';
const organizationClaim = (organization) => (organization ? { [behaviour.custom_claim ? customClaim : 'org_id']: organization } : {});

const clients = () => setup.clients.map((client) => ({
  client_id: client.id,
  ...(client.secret ? { client_secret: client.secret, token_endpoint_auth_method: 'client_secret_post' } : { token_endpoint_auth_method: 'none' }),
  application_type: client.native ? 'native' : 'web',
  redirect_uris: client.redirect_uris,
  grant_types: [
    ...(client.redirect_uris.length ? ['authorization_code'] : []), 'refresh_token',
    ...(client.device ? ['urn:ietf:params:oauth:grant-type:device_code'] : []),
  ],
  response_types: client.redirect_uris.length ? ['code'] : [],
  backchannel_logout_uri: backchannel,
  backchannel_logout_session_required: true,
}));

const build = () => {
  const provider = new Provider(issuer, {
    adapter: Adapter,
    clients: clients(),
    jwks: { keys },
    cookies: { keys: ['a key for cookies of tests'] },
    pkce: { required: () => true },
    extraParams: ['audience', 'organization'],
    scopes: ['openid', 'profile', 'email', 'offline_access'],
    claims: { openid: ['sub', 'org_id', customClaim], profile: ['name'], email: ['email', 'email_verified'] },
    conformIdTokenClaims: false, // Auth0 puts profile and e-mail address into the ID token.
    rotateRefreshToken: true,
    issueRefreshToken: async (_ctx, client, code) => client.grantTypeAllowed('refresh_token') && code.scopes.has('offline_access'),
    ttl: { IdToken: () => lifetimes.id_token, DeviceCode: () => setup.device_code_seconds ?? 600, Session: 86400, Grant: 86400, Interaction: 600 },
    routes: {
      authorization: '/authorize', token: '/oauth/token', userinfo: '/userinfo', jwks: '/.well-known/jwks.json',
      device_authorization: '/oauth/device/code', code_verification: '/activate', end_session: '/oidc/logout', revocation: '/oauth/revoke',
    },
    features: {
      devInteractions: { enabled: false },
      deviceFlow: { enabled: true },
      backchannelLogout: { enabled: true },
      revocation: { enabled: true },
      rpInitiatedLogout: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: (ctx) => ctx.oidc.params?.audience ?? ctx.oidc.body?.audience ?? audience,
        useGrantedResource: () => true,
        getResourceServerInfo: (_ctx, resource) => ({
          scope: 'use:envforge', audience: resource, accessTokenTTL: lifetimes.access_token, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
    // Their default refuses loopback addresses, where the receiver of a test lives.
    fetch: (url, { dispatcher: _, ...options }) => globalThis.fetch(url, options),
    interactions: { url: (_ctx, interaction) => `${base}/interaction/${interaction.uid}` },
    findAccount: (_ctx, id, token) => ({
      accountId: id,
      claims: async () => {
        const known = people.get(id) ?? {};
        const organization = organizations.get(token?.grantId) ?? known.organization;
        return {
          sub: id, email: known.email, email_verified: known.email_verified, name: known.name,
          ...organizationClaim(organization),
        };
      },
    }),
    extraTokenClaims: (_ctx, token) => {
      const organization = organizations.get(token.grantId) ?? people.get(token.accountId)?.organization;
      return { azp: token.clientId, ...organizationClaim(organization) };
    },
    // First-party applications ask nobody for consent.
    loadExistingGrant: async (ctx) => grantOf(ctx.oidc.client.clientId, ctx.oidc.session.accountId, ctx.oidc.params.organization),
  });
  provider.on('authorization.success', (ctx) => { sids.push(ctx.oidc.session.sidFor(ctx.oidc.client.clientId)); });
  provider.on('server_error', (_ctx, error) => console.error('server_error', error));
  provider.on('grant.error', (_ctx, error) => console.error('grant.error', error.error, error.error_detail ?? error.error_description));
  provider.on('authorization.error', (_ctx, error) => console.error('authorization.error', error.error, error.error_description));
  provider.on('backchannel.error', (_ctx, error) => console.error('backchannel.error', error));
  return provider;
};

const grantOf = async (clientId, accountId, asked) => {
  const grant = new provider.Grant({ clientId, accountId });
  grant.addOIDCScope('openid profile email offline_access');
  grant.addResourceScope(audience, 'use:envforge');
  const id = await grant.save();
  // As Auth0: whoever names an organization signs in to it or not at all; here everybody belongs to whatever their record says.
  organizations.set(id, asked ?? people.get(accountId)?.organization);
  return grant;
};

let provider = build();
let serve = provider.callback();
const rebuild = () => { provider = build(); serve = provider.callback(); };

// --- levers -------------------------------------------------------------------------------------------------------
const behaviour = { delay_ms: 0, delay_path: '', down: false, keys_extra: 0, pending_status: 403, slow_downs: 0, huge: false, custom_claim: false };
const counts = {};

const base64 = (value) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');
const levers = {
  person: async (given) => { person = { ...person, ...given }; if (given.organization === null) delete person.organization; return person; },
  behave: async (given) => Object.assign(behaviour, given),
  lifetimes: async (given) => { lifetimes = { ...lifetimes, ...given }; return lifetimes; },
  counts: async () => counts,
  sids: async () => sids,
  rotate: async ({ keep = true }) => { keys = [await newKey(), ...(keep ? keys : [])]; rebuild(); return { kid: keys[0].kid }; },
  backchannel: async ({ uri }) => { backchannel = uri; rebuild(); return {}; },
  device: async ({ user_code: userCode, approve }) => {
    const code = await provider.DeviceCode.findByUserCode(userCode.replace(/[^A-Z0-9]/gi, '').toUpperCase(), { ignoreExpiration: true });
    if (!code) throw new Error(`no device with the code ${userCode}`);
    if (approve) {
      people.set(person.subject, person);
      const grant = await grantOf(code.clientId, person.subject, code.params.organization);
      Object.assign(code, {
        accountId: person.subject, grantId: grant.jti, authTime: Math.floor(Date.now() / 1000), scope: code.params.scope,
        claims: {}, sessionUid: `device-${grant.jti}`, sid: `device-${grant.jti}`, resource: audience,
      });
    } else {
      Object.assign(code, { error: 'access_denied', errorDescription: 'the person said no' });
    }
    await code.save();
    return {};
  },
  // Sends a logout token to the back channel, as when somebody signs out at the provider.
  logout: async ({ client, subject, sid }) => {
    const found = await provider.Client.find(client);
    try {
      await found.backchannelLogout(subject, sid);
      return { status: 200 };
    } catch (error) {
      if (!error.response) throw error;
      return { status: error.response.status, body: await error.response.text().catch(() => '') };
    }
  },
  // Whatever a test wants, signed with the provider's own key: for tokens that are wrong in just one way.
  sign: async ({ header = {}, claims = {} }) => {
    const head = { alg: 'RS256', kid: keys[0].kid, typ: 'JWT', ...header };
    const text = `${base64(head)}.${base64(claims)}`;
    const signature = signBytes('sha256', Buffer.from(text), createPrivateKey({ key: keys[0], format: 'jwk' }));
    return { token: `${text}.${signature.toString('base64url')}` };
  },
};

const readBody = async (request) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
};
const answer = (response, status, body) => {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
};

// Signs in whoever sits there.
const sids = []; // In the order of sign-ins in browsers.
const interact = async (request, response) => {
  const details = await provider.interactionDetails(request, response);
  people.set(person.subject, person);
  // Programs on people's machines are asked for consent each time; nobody is here who could be asked.
  const result = details.prompt.name === 'login' ? { login: { accountId: person.subject } } : { consent: {} };
  await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: true });
};

createServer(async (request, response) => {
  const { pathname } = new URL(request.url, base);
  try {
    if (pathname.startsWith('/test/')) {
      const lever = levers[pathname.slice('/test/'.length)];
      const body = await readBody(request);
      return answer(response, 200, await lever(body ? JSON.parse(body) : {}));
    }
    counts[pathname] = (counts[pathname] ?? 0) + 1;
    if (behaviour.down) return request.socket.destroy();
    if (behaviour.delay_ms && pathname.startsWith(behaviour.delay_path)) {
      await new Promise((resolve) => { setTimeout(resolve, behaviour.delay_ms); });
    }
    if (behaviour.huge) {
      response.writeHead(200, { 'content-type': 'application/json' });
      const block = ' '.repeat(1 << 16);
      for (let index = 0; index < 1024 && !response.destroyed; index += 1) {
        if (!response.write(block)) await new Promise((resolve) => { response.once('drain', resolve); response.once('close', resolve); });
      }
      return response.end('{}');
    }
    if (pathname === '/.well-known/jwks.json' && behaviour.keys_extra) {
      const shown = ({ kty, n, e, kid, use, alg }) => ({ kty, n, e, kid, use, alg });
      const extra = Array.from({ length: behaviour.keys_extra }, (_, index) => ({ ...shown(keys[0]), kid: `extra-${index}` }));
      return answer(response, 200, { keys: [...extra, ...keys.map(shown)] });
    }
    if (pathname === '/oauth/token' && behaviour.slow_downs > 0) {
      behaviour.slow_downs -= 1;
      return answer(response, 429, { error: 'slow_down', error_description: 'You are polling faster than allowed.' });
    }
    if (pathname.startsWith('/interaction/')) return await interact(request, response);
    if (pathname === '/oauth/token') {
      // Auth0 answers 403 while the person has not decided yet; RFC 8628 would be 400.
      const end = response.end.bind(response);
      response.end = (chunk, ...rest) => {
        if (response.statusCode === 400 && String(chunk).includes('"authorization_pending"')) response.statusCode = behaviour.pending_status;
        return end(chunk, ...rest);
      };
    }
    return await serve(request, response);
  } catch (error) {
    console.error(pathname, error);
    if (!response.headersSent) answer(response, 500, { error: String(error?.message ?? error) });
    return undefined;
  }
}).listen(Number(port), '127.0.0.1', () => console.log('ready'));
