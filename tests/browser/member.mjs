// A member in a real browser who opens a workspace by its address alone. Told what to do next by lines on standard input,
// tells what it saw by lines of JSON. Arguments: the workspace's URL, the API's, `password` or `provider`, e-mail address,
// password, folder for screenshots. Not here: whom the provider signs in.
import { createInterface } from 'node:readline';
import { DESK, axe, looks as looksIn, open, picture } from './eyes.mjs';

const [workspaceUrl, apiUrl, way, email, password, shots] = process.argv.slice(2);
const say = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));
const looks = (page, what) => looksIn(page, what, shots);
const told = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const seenOn = async (page) => ({ url: page.url(), text: await page.innerText('main'), axe: await axe(page) });

const browser = await open();
try {
  const context = await browser.newContext({ viewport: DESK });
  const page = await context.newPage();
  const failures = [];
  page.on('pageerror', (error) => failures.push(String(error)));
  page.on('console', (message) => {
    if (message.text().includes('Content Security Policy')) failures.push(message.text());
  });

  // The waking page goes on to the app by itself; it is looked at before it hears that it may.
  let heard;
  const looked = new Promise((resolve) => (heard = resolve));
  await page.route('**/.envforge/wake**', async (route) => {
    await looked;
    await route.continue().catch(() => {});
  });

  await page.goto(`${workspaceUrl}?from=the%20address%20bar`);
  say('sign-in', await seenOn(page));
  const views = await looks(page, 'sign-in');

  if (way === 'password') {
    await page.fill('#email', email);
    await page.fill('#password', 'not the password');
    await page.click('form button');
    await page.waitForSelector('.problem');
    const kept = await page.inputValue('#email');
    say('wrong-password', { kept, ...(await seenOn(page)) });
    views.push(...(await looks(page, 'wrong-password')));
    await page.fill('#password', password);
    await page.click('form button');
  } else {
    await page.click('a.button');
  }
  await page.waitForSelector('li[data-stage]', { timeout: 30_000 });
  say('waking', await seenOn(page));
  heard();

  await page.waitForSelector('#live[data-state="open"]', { timeout: 60_000 });
  await page.waitForFunction(() => document.querySelector('#figure-open').textContent !== '–');
  await page.fill('#words', 'by a member');
  await page.click('#echo button');
  await page.waitForSelector('#echoes li');
  await picture(page, `${shots}/app.png`);
  const seen = await page.evaluate(async () => ({
    orders: (await (await fetch('/api/orders')).json()).orders?.length ?? -1,
    echo: document.querySelector('#echoes').innerText,
    cookie: document.cookie,
    socket: document.querySelector('#live').dataset.state,
  }));
  const cookies = (await context.cookies()).map(({ name, domain, httpOnly, sameSite }) => ({ name, domain, httpOnly, sameSite }));
  say('app', { ...seen, url: page.url(), cookies, failures });

  // A second service of the same person needs no second sign-in; here, the same host in a tab of its own.
  const second = await context.newPage();
  await second.goto(workspaceUrl);
  await second.waitForSelector('#live[data-state="open"]', { timeout: 30_000 });
  say('second-tab', { url: second.url() });
  await second.close();

  const home = await context.newPage();
  await home.goto(apiUrl);
  // What the browser's own session is good for at the API.
  const own = await context.request.get(`${apiUrl}/v1/me`);
  say('home', { me: { status: own.status(), code: (await own.json()).code ?? null }, ...(await seenOn(home)) });
  views.push(...(await looks(home, 'home')));
  await told.next();
  // Either they sign out themselves, or somebody else has ended their sessions by now.
  const begun = Date.now();
  if (way === 'password') await home.click('form button');
  else await home.goto(`${apiUrl}/signed-out`);
  await home.waitForSelector('text=You are signed out');
  const pageMs = Date.now() - begun;
  await page.waitForFunction(() => document.querySelector('#live')?.dataset.state !== 'open', null, { timeout: 5_000 });
  const socketMs = Date.now() - begun;
  const api = await page.evaluate(async () => {
    const answer = await fetch('/api/orders');
    return { status: answer.status, type: answer.headers.get('content-type'), body: await answer.json(), redirected: answer.redirected };
  });
  say('signed-out', { pageMs, socketMs, api, ...(await seenOn(home)) });
  views.push(...(await looks(home, 'signed-out')));
  await page.reload();
  const leftover = way === 'provider' ? [] : (await context.cookies(apiUrl)).map(({ name }) => name).filter((name) => name.includes('envforge-session'));
  say('out', { url: page.url(), leftover, text: await page.innerText('main') });
  say('looks', { views });
} finally {
  await browser.close();
}
