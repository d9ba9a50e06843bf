// Somebody who is shown a code by a terminal and approves it in a browser, at the provider's own page. Arguments: the page's
// URL with the code, folder for screenshots.
import { open, picture } from './eyes.mjs';

const [url, shots] = process.argv.slice(2);
const browser = await open();
try {
  const page = await (await browser.newContext()).newPage();
  await page.goto(url);
  for (let step = 0; step < 5; step += 1) {
    await picture(page, `${shots}/device-${step}.png`);
    const text = await page.innerText('body');
    if (/success|signed in/i.test(text)) break;
    const button = page.locator('button[type=submit]:not([name=abort])').first();
    if ((await button.count()) === 0) break;
    await Promise.all([page.waitForLoadState('load'), button.click()]);
  }
  console.log(JSON.stringify({ event: 'approved', url: page.url(), text: await page.innerText('body') }));
} finally {
  await browser.close();
}
