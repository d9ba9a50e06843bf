// A reviewer in a real browser. Told what to do next by lines on standard input, tells what it saw by lines of JSON.
// Arguments: share URL, folder for screenshots. Not here: who revokes the link.
import { createInterface } from 'node:readline';
import { DESK, axe, looks as looksIn, open, picture } from './eyes.mjs';

const [shareUrl, shots] = process.argv.slice(2);

const say = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));
const looks = (page, what) => looksIn(page, what, shots);
const told = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const browser = await open();
try {
  const context = await browser.newContext({ viewport: DESK });
  const page = await context.newPage();
  const failures = [];
  page.on('pageerror', (error) => failures.push(String(error)));

  await page.goto(shareUrl);
  const share = await page.innerText('main');
  await picture(page, `${shots}/1-share.png`);
  const before = await context.cookies();
  say('share', { text: share, cookies: before.length, axe: await axe(page) });
  const views = await looks(page, 'share');

  // The waking page goes on to the app by itself; it is looked at before it hears that it may.
  let heard;
  const looked = new Promise((resolve) => (heard = resolve));
  await page.route('**/.envforge/wake**', async (route) => {
    await looked;
    // The page may be gone by then.
    await route.continue().catch(() => {});
  });
  await page.click('form button');
  await page.waitForSelector('li[data-stage]');
  await picture(page, `${shots}/2-waking.png`);
  const waking = { text: await page.innerText('main'), axe: await axe(page) };
  views.push(...(await looks(page, 'waking')));
  say('opened', { url: page.url(), ...waking });
  heard();

  await page.waitForSelector('#live[data-state="open"]', { timeout: 60_000 });
  await page.waitForFunction(() => document.querySelector('#figure-open').textContent !== '–');
  await page.fill('#words', 'across the gateway');
  await page.click('#echo button');
  await page.waitForSelector('#echoes li');
  await picture(page, `${shots}/3-app.png`);
  const seen = await page.evaluate(async () => ({
    orders: (await (await fetch('/api/orders')).json()).orders?.length ?? -1,
    style: (await fetch('/assets/board.css')).status,
    echo: document.querySelector('#echoes').innerText,
    cookie: document.cookie,
    socket: document.querySelector('#live').dataset.state,
  }));
  say('app', { ...seen, url: page.url(), failures });

  await told.next(); // the link is being revoked now
  const revoked = Date.now();
  await page.waitForFunction(() => document.querySelector('#live')?.dataset.state !== 'open', null, { timeout: 5_000 });
  const socketMs = Date.now() - revoked;
  const api = await page.evaluate(async () => {
    const answer = await fetch('/api/orders');
    return { status: answer.status, type: answer.headers.get('content-type'), body: await answer.json(), redirected: answer.redirected };
  });
  await page.reload();
  await picture(page, `${shots}/4-ended.png`);
  say('revoked', { socketMs, api, text: await page.innerText('main'), axe: await axe(page) });

  views.push(...(await looks(page, 'ended')));
  say('looks', { views });

  const again = await context.newPage();
  await again.goto(shareUrl);
  const buttons = await again.locator('form button').count();
  say('share-again', { text: await again.innerText('main'), buttons, axe: await axe(again) });
} finally {
  await browser.close();
}
